"""What both sides hold of one tag: who takes part, in which graph, for which vector."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from fedpers.channels.identity.encoding import Refused, decode, encode, table, text
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.graph import Graph, Policy, degree
from fedpers.channels.masked.quantise import Layout

Survivors = Mapping[str, bytes]
"""Whose upload is in, by id, and which: its commitment to the own seed. A client that has forgotten
that it sent one, and sends another under the same pads, is in one set with one of them: the own
seed of the other comes out nowhere, as shares are for the upload that the set names."""


@dataclass(frozen=True)
class Terms:
    """What a server proposes.

    Args:
        run: id of the run.
        round: of the run.
        tag: of this sum, higher than any that a client of the cohort has served, in any run.
        cohort: the clients' ids, in order.
        layout: of the vector.
        contributions: to the graph's seed, in the cohort's order; none where all pairs mask, and
            none when they are asked for.
    """

    run: str
    round: int
    tag: int
    cohort: tuple[str, ...]
    layout: Layout
    contributions: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """The message; without the layout, which both sides have from their settings."""
        cohort, given = encode(*self.cohort), encode(*self.contributions)
        return encode(self.run, self.round, self.tag, cohort, given)

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> Terms:
        """The terms that ``to_bytes`` wrote.

        Raises:
            Refused: ``data`` is none.
        """
        run, turn, tag, cohort, given = decode(data, 5, "terms")
        if not all(number.isdigit() and len(number) < 10 for number in (turn, tag)):
            raise Refused("terms: got a round or tag that is no number, takes up to nine digits")
        names = tuple(text(name, "cohort") for name in decode(cohort, None, "cohort"))
        contributions = tuple(decode(given, None, "contributions"))
        return cls(text(run, "run"), int(turn), int(tag), names, layout, contributions)


class Session:
    """Terms that hold under a registry and a policy.

    Raises:
        Refused: they do not.
    """

    def __init__(self, terms: Terms, registry: Registry, policy: Policy) -> None:
        self.terms, self.registry, self.policy = terms, registry, policy
        cohort, clients = terms.cohort, len(terms.cohort)
        ordered(cohort, "cohort")
        if clients < policy.minimum:
            raise Refused(f"cohort: got {clients} clients, takes {policy.minimum} or more")
        if clients > terms.layout.clients:
            raise Refused(f"cohort: got {clients} clients, takes {terms.layout.clients} or fewer")
        if terms.tag < 1 or terms.round < 0:
            raise Refused(f"tag: got {terms.tag} in round {terms.round}, takes 1 or more")
        self.publics = {client: registry[client] for client in cohort}
        self.quorum = policy.quorum(clients)
        self._accepted: tuple[Survivors, bytes] = {}, b""
        self._lost: dict[str, list[str]] = {}  # of the set accepted

    @property
    def sparse(self) -> bool:
        """Whether a random graph is needed, so contributions are."""
        clients = len(self.terms.cohort)
        return degree(clients, self.policy)[0] < clients - 1

    @cached_property
    def call(self) -> bytes:
        """Digest of the terms without contributions, of the policy and of the cohort's keys."""
        terms, policy = self.terms, self.policy
        asked = encode(terms.run, terms.round, terms.tag, terms.layout.signed)
        shares = encode(policy.minimum, policy.corrupt, policy.dropouts, policy.all_pairs)
        bits = encode(policy.security, policy.correctness)
        keys = [encode(public.signed, public.signature) for public in self.publics.values()]
        whole = encode("fedpers masked call", asked, shares, bits, *keys)
        return hashlib.sha256(whole).digest()

    @cached_property
    def digest(self) -> bytes:
        """Digest of all that was agreed: both sides have the same graph, keys and layout.

        Raises:
            Refused: a contribution is missing or not its client's own.
        """
        given, cohort = self.terms.contributions, self.terms.cohort
        needed = len(cohort) if self.sparse else 0
        if len(given) != needed:
            raise Refused(f"contributions: got {len(given)}, takes {needed} from this cohort")
        for client, value in zip(cohort, given, strict=False):
            self.registry.check_contribution(client, self.terms.tag, value)
        return hashlib.sha256(encode("fedpers masked session", self.call, *given)).digest()

    @cached_property
    def graph(self) -> Graph:
        """The graph. Its seed holds the cohort, fixed before anybody said a contribution, and
        one of each client, so that a single honest client makes it one that the server could not
        try out beforehand; dropping the tag to get another is what ``Policy.attempts`` limits.
        """
        return Graph.of(self.terms.cohort, self.digest, self.policy)

    def deriving(self, owner: str) -> tuple[str, ...]:
        """The neighbours that derive their shares of the owner's seeds: one below the threshold."""
        return self.graph.neighbours(owner)[: self.graph.threshold - 1]

    def boxed(self, owner: str) -> tuple[str, ...]:
        """The other neighbours, who are sent theirs."""
        return self.graph.neighbours(owner)[self.graph.threshold - 1 :]

    def places(self, owner: str) -> dict[str, int]:
        """Where a row of shares has the owner's own seed and those with its neighbours; also the
        point at which a neighbour has its shares."""
        return self._places[owner]

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        return {
            owner: {other: place for place, other in enumerate((owner, *neighbours))}
            for owner in self.terms.cohort
            for neighbours in [self.graph.neighbours(owner)]
        }

    def survivors(self, given: Survivors) -> bytes:
        """Digest of a set of survivors that protects its members and can be unmasked.

        Raises:
            Refused: it is below the minimum or the quorum, holds strangers, or cuts the graph.
        """
        if self._accepted[0] is given:  # in a simulation thousands ask for the same set
            return self._accepted[1]
        ordered(tuple(given), "survivors")
        if strangers := given.keys() - set(self.terms.cohort):
            raise Refused(f"survivors: got {sorted(strangers)}, takes clients of the cohort")
        least = max(self.policy.minimum, self.quorum)
        if len(given) < least:
            raise Refused(f"survivors: got {len(given)}, takes {least} or more of the cohort")
        if not self.graph.holds(given.keys()):
            raise Refused("survivors: got a set with too few in some place of the graph")
        whole = encode("fedpers masked survivors", self.digest, table(given))
        digest = hashlib.sha256(whole).digest()
        self._accepted, self._lost = (given, digest), {}
        return digest

    def lost(self, owner: str, survivors: Survivors) -> list[str]:
        """The owner's neighbours that dropped out, by id."""
        known = self._lost if self._accepted[0] is survivors else {}
        if owner not in known:
            known[owner] = [o for o in self.graph.neighbours(owner) if o not in survivors]
        return known[owner]

    def commitment(self, seed: bytes) -> bytes:
        """32 bytes that bind to a seed of 16."""
        return hashlib.sha256(b"fedpers masked seed" + self.digest + seed).digest()


@lru_cache(4)  # in a simulation the clients of a process agree to the same terms
def agreed(terms: Terms, registry: Registry, policy: Policy) -> Session:
    """The session of these terms.

    Raises:
        Refused: they do not hold.
    """
    return Session(terms, registry, policy)


def ordered(clients: Sequence[str], what: str) -> None:
    """Whether ids are in order and differ: one set has one list.

    Raises:
        Refused: they are not.
    """
    if any(one >= after for one, after in pairwise(clients)):
        raise Refused(f"{what}: got ids out of order or twice, takes each once, in order")
