"""The client's half: masks its vector, signs one set of survivors, helps to unmask that one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry, verified
from fedpers.channels.masked import masks, memory, shamir
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.memory import Memory, Step
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.session import Session, Survivors, Terms, agreed
from fedpers.privacy.noise import secret

NONCE = bytes(masks.NONCE)  # of a box, whose key is used for nothing else


@dataclass(frozen=True)
class Plan:
    """One step of one client: what it will have done, and what it says when that is written."""

    client: str
    memory: Memory
    step: Step
    answer: Callable[[], bytes]


def carry_out(plans: Iterable[Plan]) -> dict[str, bytes | Exception]:
    """What clients of one memory say, whose steps are written together first; or why one of them
    does not, which costs no other."""
    due = {plan.client: plan for plan in plans}
    found: dict[str, bytes | Exception] = {}
    for kept in {plan.memory.path: plan.memory for plan in due.values()}.values():
        try:
            found |= kept.take({c: p.step for c, p in due.items() if p.memory.path == kept.path})
        except Refused as error:
            found |= {c: error for c, p in due.items() if p.memory.path == kept.path}
    for client, plan in due.items():
        try:
            found[client] = found[client] if client in found else plan.answer()
        except Exception as error:
            found[client] = error
    return {client: found[client] for client in due}


class MaskedClient:
    """One client's steps, named as in Bonawitz et al. 2017, figure 4.

    Each takes the terms anew and keeps nothing but ``memory``, so that a restarted client goes on.
    Each is there as a plan too, so that a node takes those of its clients together (``carry_out``).

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
        return self.memory.of(self.me).tag

    def advertise(self, terms: Terms) -> bytes:
        """AdvertiseKeys: 32 bytes, this client's contribution to the graph of the tag.

        Raises:
            Refused: the terms do not hold, or the tag is not a new one.
        """
        return _alone(self.advertising(terms))

    def advertising(self, terms: Terms) -> Plan:
        """As ``advertise``."""
        session = self._session(terms)
        if not session.sparse:
            raise Refused(f"cohort: got {len(terms.cohort)} clients, all pairs mask without a seed")
        return self._plan(
            memory.joined(session), lambda: self.identity.contribution(session.terms.tag)
        )

    def mask(self, terms: Terms, words: masks.Words) -> bytes:
        """ShareKeys and MaskedInputCollection: the upload.

        y = x + PRG(b) + sum of +-PRG(s_ij) over the neighbours; b and this tag's s_ij are shared
        among the neighbours. All but a threshold of them derive their shares, which are what draws
        the polynomials; for each of the others they are in a box that it alone opens. Shares are of
        one b: a second upload under the same s_ij, by a client that forgot the first, has others.

        Args:
            words: of the terms' layout, uint64 [layout.words]; not changed.

        Raises:
            Refused: the terms do not hold, or this tag, or one after it, was served.
        """
        return self.masked(terms, _alone(self.uploading(terms)), words)

    def uploading(self, terms: Terms) -> Plan:
        """What ``mask`` notes; it answers with b, for one call of ``masked``."""
        session = self._session(terms)
        own = secret("self mask", self.me).bits(shamir.BYTES)
        return self._plan(memory.uploaded(session, session.commitment(own)), lambda: own)

    def masked(self, terms: Terms, own: bytes, words: masks.Words) -> bytes:
        """The upload under b, when that is noted, and once."""
        session = self._session(terms)
        if len(words) != terms.layout.words:
            raise Refused(f"vector: got {len(words)} words, takes {terms.layout.words}")
        graph, layout = session.graph, session.terms.layout
        neighbours = graph.neighbours(self.me)
        seeds = {self.me: own, **{other: self._pair(session, other) for other in neighbours}}
        bound = [session.commitment(seed) for seed in seeds.values()]
        keys = {helper: self._key(session, helper, bound[0]) for helper in neighbours}
        drawn = [derived(keys[helper], len(seeds)) for helper in session.deriving(self.me)]
        rows = shamir.split(b"".join(seeds.values()), drawn, len(neighbours))
        boxes = [
            AESGCM(keys[helper]).encrypt(NONCE, row, None)
            for helper, row in zip(session.boxed(self.me), rows, strict=True)
        ]
        masked = words.copy()
        for other, seed in seeds.items():
            masks.add(masked, seed, masks.side(self.me, other))
        vector = layout.packed(masked)
        made = Upload(self.me, session.digest, b"".join(boxes), b"".join(bound), vector)
        return made.to_bytes()

    def sign(self, terms: Terms, survivors: Survivors) -> bytes:
        """ConsistencyCheck: a signature, 64 bytes, under the one set that is unmasked.

        Raises:
            Refused: the set is too small, holds strangers or not this client's last upload, cuts
                the graph, or another was signed for this tag.
        """
        return _alone(self.signing(terms, survivors))

    def signing(self, terms: Terms, survivors: Survivors) -> Plan:
        """As ``sign``."""
        session = self._session(terms)
        digest = self._agreed(session, survivors)
        step = memory.signed(session, digest, survivors[self.me])
        return self._plan(step, lambda: self.identity.sign(digest))

    def reveal(
        self,
        terms: Terms,
        survivors: Survivors,
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
        return _alone(self.revealing(terms, survivors, signatures, boxes))

    def revealing(
        self,
        terms: Terms,
        survivors: Survivors,
        signatures: Mapping[str, bytes],
        boxes: Mapping[str, bytes],
    ) -> Plan:
        """As ``reveal``."""
        session = self._session(terms)
        digest = self._agreed(session, survivors)
        good = [
            name
            for name, signature in signatures.items()
            if name in survivors and verified(session.publics[name].verifying, signature, digest)
        ]
        if len(good) < session.quorum:
            raise Refused(f"signatures: got {len(good)} good ones, takes {session.quorum}")
        return self._plan(
            memory.revealed(session, digest), lambda: self._shares(session, survivors, boxes)
        )

    def _shares(self, session: Session, survivors: Survivors, boxes: Mapping[str, bytes]) -> bytes:
        owners = {}
        for owner in session.graph.neighbours(self.me):
            if owner not in survivors:
                continue
            places, lost = session.places(owner), session.lost(owner, survivors)
            wanted = [places[other] for other in (owner, *lost)]
            key = self._key(session, owner, survivors[owner])
            if self.me in session.boxed(owner):
                row = opened(key, boxes.get(owner, b""), len(places))
            else:
                row = derived(key, wanted[-1] + 1 if lost else 1)
            if row:
                owners[owner] = b"".join(row[at * shamir.BYTES :][: shamir.BYTES] for at in wanted)
        return Shares(self.me, session.survivors(survivors), owners).to_bytes()

    def _plan(self, step: Step, answer: Callable[[], bytes]) -> Plan:
        return Plan(self.me, self.memory, step, answer)

    def _session(self, terms: Terms) -> Session:
        if self.me not in terms.cohort:
            raise Refused(f"cohort: got one without {self.me}, takes one with it")
        return agreed(terms, self.registry, self.policy)

    def _agreed(self, session: Session, survivors: Survivors) -> bytes:
        if self.me not in survivors:
            raise Refused(f"survivors: got a set without {self.me}, takes one with it")
        return session.survivors(survivors)

    def _pair(self, session: Session, other: str) -> bytes:
        """s_ij of this tag; revealing it tells nothing of any other tag's."""
        return self.identity.seed(session.publics[other], b"fedpers masked pair" + session.digest)[
            : shamir.BYTES
        ]

    def _key(self, session: Session, other: str, commitment: bytes) -> bytes:
        """What an owner and a helper derive the helper's shares from, or box them under; of one
        upload, as its owner's own seed is drawn for it."""
        path = b"fedpers masked shares" + session.digest + commitment
        return self.identity.seed(session.publics[other], path)


def derived(key: bytes, count: int) -> bytes:
    """The first ``count`` of a row of shares that owner and helper derive, so that it is not
    sent."""
    return masks.pseudorandom(key, shamir.BYTES * count)


def opened(key: bytes, box: bytes, count: int) -> bytes | None:
    """The row of ``count`` shares in a box; None where it is no such row."""
    try:
        row = AESGCM(key).decrypt(NONCE, box, None)
    except (InvalidTag, ValueError):
        return None
    return row if len(row) == shamir.BYTES * count else None


def _alone(plan: Plan) -> bytes:
    """One client's step by itself."""
    answer = carry_out([plan])[plan.client]
    if isinstance(answer, Exception):
        raise answer
    return answer
