"""The server's half: adds masked vectors, and takes from the sum the masks of one set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.registry import Registry, verified
from fedpers.channels.masked import masks, shamir
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Dropped, Shares, Upload
from fedpers.channels.masked.session import Survivors, Terms, agreed

TAG = 16  # bytes of a box beside its row
COMMITMENT = 32


class MaskedServer:
    """One tag, from the uploads to the sum; steps named as in Bonawitz et al. 2017, figure 4.

    A message that is refused costs its client alone. Who sent it the transport knows, and says.
    ``suspects`` are helpers with a wrong share, which they or its owner made, and owners none of
    whose shares are right.

    Args:
        terms: with all contributions, where the graph needs them.

    Raises:
        Refused: the terms do not hold.
    """

    def __init__(self, terms: Terms, registry: Registry, policy: Policy) -> None:
        self.session = agreed(terms, registry, policy)
        self.total = np.zeros(terms.layout.words, np.uint64)
        self.suspects: set[str] = set()
        self.survivors: Survivors = {}
        self._digest = b""
        self._boxes: dict[str, dict[str, bytes]] = {}  # owner -> helper -> box
        self._commitments: dict[str, dict[str, bytes]] = {}  # owner -> other -> commitment
        self._signatures: dict[str, bytes] = {}
        self._shares: dict[str, dict[int, bytes]] = {}  # owner -> point -> shares
        self.session.digest  # noqa: B018 -- contributions are checked now

    def receive(self, client: str, data: bytes) -> None:
        """MaskedInputCollection: the upload that ``client`` sent.

        Raises:
            Refused: late, of nobody in the cohort, another's, a second one, of other terms, cut or
                changed.
        """
        upload = Upload.from_bytes(data)
        session, k = self.session, self.session.graph.k
        layout = session.terms.layout
        if self._digest:
            raise Refused(f"{client}: got an upload after the survivors were named, takes none")
        if client not in session.publics:
            raise Refused(f"{client}: got a client outside the cohort, takes its members")
        if upload.client != client:
            raise Refused(f"{client}: got the upload of {upload.client}, takes its own")
        if upload.session != session.digest:
            takes = "these; compare registry, policy, layout and tag"
            raise Refused(f"{client}: got an upload for other terms, takes one for {takes}")
        if client in self._boxes:
            raise Refused(f"{client}: got a second upload, takes one a tag")
        box, boxed = shamir.BYTES * (1 + k) + TAG, session.boxed(client)
        sizes = len(upload.boxes), len(upload.commitments), len(upload.vector)
        if sizes != (due := (box * len(boxed), COMMITMENT * (1 + k), layout.nbytes)):
            raise Refused(f"{client}: got boxes, commitments, vector of {sizes} bytes, takes {due}")
        self._boxes[client] = dict(zip(boxed, _pieces(upload.boxes, box), strict=True))
        bound = _pieces(upload.commitments, COMMITMENT)
        self._commitments[client] = dict(zip(session.places(client), bound, strict=True))
        self.total += layout.unpacked(upload.vector)

    def close(self) -> Survivors:
        """The survivors: whose upload is in, by id; no other is taken from now on.

        Raises:
            Dropped: too few for any client to agree.
        """
        self.survivors = {one: self._commitments[one][one] for one in sorted(self._boxes)}
        try:
            self._digest = self.session.survivors(self.survivors)
        except Refused as error:
            raise Dropped(f"the round is dropped: {error}") from None
        return self.survivors

    def receive_signature(self, client: str, signature: bytes) -> None:
        """ConsistencyCheck: one survivor's signature under the set.

        Raises:
            Refused: not a survivor, or no such signature.
        """
        if client not in self.survivors:
            raise Refused(f"{client}: got a signature of no survivor, takes survivors'")
        if not verified(self.session.publics[client].verifying, signature, self._digest):
            raise Refused(f"{client}: got a signature that is not its own, takes its key's")
        self._signatures[client] = signature

    @property
    def signatures(self) -> Mapping[str, bytes]:
        """Of a quorum, which every helper is shown.

        Raises:
            Dropped: fewer signed.
        """
        signed, quorum = self._signatures, self.session.quorum
        if len(signed) < quorum:
            raise Dropped(f"the round is dropped: {len(signed)} signed, takes {quorum}")
        return dict(sorted(signed.items())[:quorum])

    def boxes(self) -> dict[str, dict[str, bytes]]:
        """For each of those that signed, who all help, the boxes that it opens, by owner."""
        found: dict[str, dict[str, bytes]] = {helper: {} for helper in self._signatures}
        for owner, row in self._boxes.items():
            for helper in found.keys() & row.keys():
                found[helper][owner] = row[helper]
        return found

    def receive_shares(self, helper: str, data: bytes) -> None:
        """Unmasking: the shares that ``helper`` sent.

        Raises:
            Refused: of who did not sign, another's, for another set, or of the wrong size.
        """
        given = Shares.from_bytes(data)
        if helper not in self._signatures:
            raise Refused(f"{helper}: got shares of who did not sign, takes signers'")
        if given.client != helper:
            raise Refused(f"{helper}: got the shares of {given.client}, takes its own")
        if given.survivors != self._digest:
            raise Refused(f"{helper}: got shares for another set, takes those of the survivors")
        for owner, row in given.owners.items():
            if owner == helper or helper not in self._commitments.get(owner, {}):
                raise Refused(f"{helper}: got shares of {owner}, takes its surviving neighbours'")
            if len(row) != shamir.BYTES * (1 + len(self.session.lost(owner, self.survivors))):
                raise Refused(f"{helper}: got {len(row)} bytes of {owner}, takes its row")
        for owner, row in given.owners.items():
            self._shares.setdefault(owner, {})[self.session.places(owner)[helper]] = row

    def unmask(self) -> masks.Words:
        """The sum of the survivors' words, exact; uint64 [layout.words].

        Raises:
            Dropped: a survivor's seeds have too few right shares. The sum stays masked.
        """
        total = self.total.copy()
        for owner in self.survivors:
            lost = self.session.lost(owner, self.survivors)
            for other, seed in zip((owner, *lost), self._seeds(owner, lost), strict=True):
                masks.add(total, seed, -masks.side(owner, other))
        # What each took modulo 2^bits of a word adds up modulo 2^bits.
        layout = self.session.terms.layout
        return layout.unpacked(layout.packed(total))

    def _seeds(self, owner: str, lost: Sequence[str]) -> list[bytes]:
        """The owner's own seed and those with ``lost``, checked against what it committed to."""
        shares, threshold = self._shares.get(owner, {}), self.session.graph.threshold
        if len(shares) < threshold:
            got = f"{len(shares)} shares of {owner}'s seeds"
            raise Dropped(f"the round is dropped: {got}, takes {threshold}")
        bound = [self._commitments[owner][other] for other in (owner, *lost)]
        helpers = self.session.graph.neighbours(owner)
        for tried, chosen in enumerate(_windows(sorted(shares), threshold)):
            row = shamir.combine({point: shares[point] for point in chosen})
            seeds = _pieces(row, shamir.BYTES)
            if [self.session.commitment(seed) for seed in seeds] == bound:
                if tried:
                    right = {point: shares[point] for point in chosen}
                    wrong = [p for p in shares if not shamir.fits(right, p, shares[p])]
                    self.suspects |= {helpers[point - 1] for point in wrong}
                return seeds
        self.suspects.add(owner)
        raise Dropped(f"the round is dropped: no shares of {owner}'s seeds give what it bound to")


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _windows(points: Sequence[int], threshold: int) -> Iterator[list[int]]:
    """Choices of a threshold of points: those that leave out neighbouring ones, so that wrong
    shares of up to as many as are spare are passed over if they lie together, one wherever."""
    for start in range(len(points) if threshold < len(points) else 1):
        yield [points[(start + step) % len(points)] for step in range(threshold)]
