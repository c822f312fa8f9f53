"""The client's half: masks its vector, signs one set of survivors, helps to unmask that one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry, verified
from fedpers.channels.masked import masks, shamir
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.session import Session, Terms, agreed
from fedpers.privacy.noise import Source, secret

NONCE = 12


class MaskedClient:
    """One client's steps, named as in Bonawitz et al. 2017, figure 4.

    Each takes the terms anew and keeps nothing but ``memory``, so that a restarted client goes on.

    Args:
        identity: its keys.
        registry: the pinned public halves, its own among them.
        policy: as on all clients.
        memory: what it has served.
    """

    def __init__(
        self, identity: Identity, registry: Registry, policy: Policy, memory: Memory
    ) -> None:
        registry.check(identity.public)
        self.identity, self.registry, self.policy, self.memory = identity, registry, policy, memory

    @property
    def me(self) -> str:
        """The client's id."""
        return self.identity.client

    @property
    def tag(self) -> int:
        """The last tag that it served: a server asks for it before it names the next one.

        Raises:
            Refused: it does not know.
        """
        return self.memory.read().tag

    def advertise(self, terms: Terms) -> bytes:
        """AdvertiseKeys: 32 bytes, this client's contribution to the graph of the tag.

        Raises:
            Refused: the terms do not hold, or the tag is not a new one.
        """
        session = self._session(terms)
        if not session.sparse:
            raise Refused(f"cohort: got {len(terms.cohort)} clients, all pairs mask without a seed")
        self.memory.join(session)
        return self.identity.contribution(terms.tag)

    def mask(self, terms: Terms, words: masks.Words) -> bytes:
        """ShareKeys and MaskedInputCollection: the upload.

        y = x + PRG(b) + sum of +-PRG(s_ij) over the neighbours; b and this tag's s_ij are shared
        among the neighbours. All but a threshold of them derive their shares, which are what draws
        the polynomials; for each of the others they are in a box that it alone opens.

        Args:
            words: of the terms' layout, uint64 [layout.words]; not changed.

        Raises:
            Refused: the terms do not hold, or this tag, or one after it, was served.
        """
        session = self._session(terms)
        if len(words) != terms.layout.words:
            raise Refused(f"vector: got {len(words)} words, takes {terms.layout.words}")
        self.memory.upload(session)
        neighbours = session.graph.neighbours(self.me)
        (own,) = shamir.elements(secret("self mask", self.me).bits(shamir.BYTES))
        seeds = {self.me: own, **{other: self._pair(session, other) for other in neighbours}}
        drawn = [self._derived(session, self.me, helper) for helper in session.deriving(self.me)]
        rows = shamir.split([*seeds.values()], drawn, len(neighbours))
        boxed = zip(session.boxed(self.me), rows, strict=True)
        boxes = [self._box(session, helper, row) for helper, row in boxed]
        bound = [session.commitment(self.me, other, seed) for other, seed in seeds.items()]
        masked = words.copy()
        for other, seed in seeds.items():
            masks.add(masked, seed, masks.side(self.me, other))
        vector = terms.layout.packed(masked)
        bare = Upload(self.me, session.digest, b"".join(boxes), b"".join(bound), vector)
        return replace(bare, signature=self.identity.sign(bare.signed)).to_bytes()

    def sign(self, terms: Terms, survivors: Sequence[str]) -> bytes:
        """ConsistencyCheck: a signature, 64 bytes, under the one set that is unmasked.

        Raises:
            Refused: the set is too small, holds strangers or not this client, cuts the graph, or
                another was signed for this tag.
        """
        session = self._session(terms)
        digest = self._agreed(session, survivors)
        self.memory.sign(session, digest)
        return self.identity.sign(digest)

    def reveal(
        self,
        terms: Terms,
        survivors: Sequence[str],
        signatures: Mapping[str, bytes],
        boxes: Mapping[str, bytes],
    ) -> bytes:
        """Unmasking: shares of each surviving neighbour's own seed, and of its pair seeds with
        those that dropped out. Of a pair that survived, and of who dropped out, nothing is given.

        Args:
            signatures: of survivors under the set, a quorum of them.
            boxes: for this client, of those surviving neighbours whose shares it does not derive.
                One that does not open is left out.

        Raises:
            Refused: not the set that this client signed, or without a quorum.
        """
        session = self._session(terms)
        digest = self._agreed(session, survivors)
        there = set(survivors)
        good = [
            name
            for name, signature in signatures.items()
            if name in there and verified(session.publics[name].verifying, signature, digest)
        ]
        if len(good) < session.quorum:
            raise Refused(f"signatures: got {len(good)} good ones, takes {session.quorum}")
        self.memory.reveal(session, digest)
        owners = {}
        for owner in session.graph.neighbours(self.me):
            if owner not in there:
                continue
            if self.me in session.boxed(owner):
                row = self._opened(session, owner, boxes.get(owner, b""))
            else:
                row = self._derived(session, owner, self.me)
            if row:
                places = session.places(owner)
                given = [row[places[other]] for other in (owner, *session.lost(owner, there))]
                owners[owner] = b"".join(share.to_bytes(shamir.BYTES, "big") for share in given)
        bare = Shares(self.me, digest, owners)
        return replace(bare, signature=self.identity.sign(bare.signed)).to_bytes()

    def _session(self, terms: Terms) -> Session:
        if self.me not in terms.cohort:
            raise Refused(f"cohort: got one without {self.me}, takes one with it")
        return agreed(terms, self.registry, self.policy)

    def _agreed(self, session: Session, survivors: Sequence[str]) -> bytes:
        if self.me not in survivors:
            raise Refused(f"survivors: got a set without {self.me}, takes one with it")
        return session.survivors(survivors)

    def _pair(self, session: Session, other: str) -> int:
        """s_ij of this tag; revealing it tells nothing of any other tag's."""
        public = session.publics[other]
        (seed,) = shamir.elements(
            self.identity.seed(public, "mask", session.digest)[: shamir.BYTES]
        )
        return seed

    def _derived(self, session: Session, owner: str, helper: str) -> list[int]:
        """A row of shares that owner and helper derive, so that it is not sent."""
        other = session.publics[helper if owner == self.me else owner]
        key = self.identity.seed(other, "shares", session.digest, owner, helper)
        return shamir.elements(Source(key).bits(shamir.BYTES * (1 + session.graph.k)))

    def _box(self, session: Session, helper: str, row: Sequence[int]) -> bytes:
        key = self.identity.seed(session.publics[helper], "box", session.digest, self.me, helper)
        nonce = secret("nonce", self.me).bits(NONCE)
        data = b"".join(share.to_bytes(shamir.BYTES, "big") for share in row)
        return nonce + ChaCha20Poly1305(key).encrypt(nonce, data, encode(self.me, helper))

    def _opened(self, session: Session, owner: str, box: bytes) -> list[int] | None:
        """The owner's row of shares for this client; None where it is no such row."""
        key = self.identity.seed(session.publics[owner], "box", session.digest, owner, self.me)
        try:
            data = ChaCha20Poly1305(key).decrypt(box[:NONCE], box[NONCE:], encode(owner, self.me))
        except (InvalidTag, ValueError):
            return None
        return shamir.elements(data) if len(data) == shamir.BYTES * (1 + session.graph.k) else None
