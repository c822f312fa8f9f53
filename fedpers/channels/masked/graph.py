"""Who masks with whom: all pairs in small cohorts, a random k-regular graph in large ones.

Bell et al. 2020, section 3: a Harary graph, each client beside the k/2 before and the k/2 after
it on a ring, in a random order. What has to hold is their definition of a good graph: no client has
a threshold of corrupt neighbours; the honest survivors are connected; each client has a threshold
of neighbours that survive.

They let clients drop out at random. A server that lies drops whom it likes, after it has seen the
graph, so here a client that signs a set of survivors looks at the graph itself (``holds``), and
chance is left with the corrupt clients alone, whom the server cannot place: the seed of the order
holds a contribution of each client that nobody foresees.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from fedpers.channels.identity.encoding import encode
from fedpers.errors import ConfigError


@dataclass(frozen=True)
class Policy:
    """What the clients of a deployment stand on; the same on all of them and on the server.

    Args:
        minimum: of clients in a sum. Each of them learns the sum of the others.
        corrupt: share of a cohort that may work with the server, >= 0. The server chooses the
            cohort, so it is meant of the smallest one: all corrupt clients may be in it.
        dropouts: share that may be lost in a round at random, >= 0; corrupt + 2 dropouts < 1.
        attempts: sets of survivors that a client serves in a round, each under a tag of its own.
            Sums over two sets tell their difference, and each new graph is a draw for the server.
        all_pairs: clients up to which all pairs mask: no seed is needed, nothing left to chance.
        security: a graph fails to protect with probability 2^-security.
        correctness: and fails to unmask, where as many drop as may, with 2^-correctness.
    """

    minimum: int = 3
    corrupt: float = 1 / 3
    dropouts: float = 0.3
    attempts: int = 3
    all_pairs: int = 100
    security: int = 40
    correctness: int = 20

    def __post_init__(self) -> None:
        where = "encryption.masks"
        if self.minimum < 2:
            takes = "2 or more: a sum of one is no sum"
            raise ConfigError(f"{where}.minimum", self.minimum, takes)
        if min(self.corrupt, self.dropouts) < 0:
            raise ConfigError(f"{where}.corrupt", (self.corrupt, self.dropouts), "shares >= 0")
        if self.corrupt + 2 * self.dropouts >= 1:
            takes = "corrupt + 2 dropouts < 1: else two sets of survivors share no honest client"
            raise ConfigError(f"{where}.dropouts", self.dropouts, takes)
        if self.attempts < 1 or self.security < 1 or self.correctness < 1:
            takes = "1 or more, as security and so on"
            raise ConfigError(f"{where}.attempts", self.attempts, takes)

    def corrupted(self, clients: int) -> int:
        """The most corrupt clients of ``clients``."""
        return math.floor(self.corrupt * clients + 1e-9)

    def quorum(self, clients: int) -> int:
        """Signatures that a set of survivors needs: more than half of honest and corrupt ones.

        Two sets with a quorum each share more clients than are corrupt, so an honest one, and it
        signs one set (Bonawitz et al. 2017, section 6, active adversaries).
        """
        return (clients + self.corrupted(clients)) // 2 + 1


@lru_cache
def degree(clients: int, policy: Policy) -> tuple[int, int]:
    """The fewest neighbours k that hold what the policy asks, and the threshold t of their shares.

    With all pairs t is above half of helpers plus corrupt clients. In a k-regular graph one event
    says it all. Take any two runs of k/2 clients each on the ring that do not overlap: a client's
    neighbours are such two, and so are the two gaps that every cut of a Harary graph needs. There
    are under n^2/2 of them, each holds corrupt clients by the hypergeometric distribution. So t is
    what survives in all of them with the policy's correctness, and k is enough if more than t - 1
    are corrupt in any with probability 2^-security at most.

    So the claim is of one tag, of all its clients at once, and of a server that drops whom it likes
    once it has seen the graph. Of 1,000 with a third corrupt and three in ten lost k is 292. Where
    the server drops at random, as in Bell et al., a union over clients would do: 252. 40 neighbours
    of 1,000 hold so much for a tenth that is corrupt, if a tenth drops at random (46), and for a
    third they do not.

    Returns:
        (k, t): k even, or clients - 1.
    """
    pairs = clients**2 / 2
    corrupt, dropped = policy.corrupted(clients), math.floor(policy.dropouts * clients + 1e-9)
    for k in range(2, clients - 1, 2) if clients > policy.all_pairs else ():
        lost = quantile(clients - 1, dropped, k, pairs * 2.0**policy.correctness)
        bad = quantile(clients - 1, corrupt, k, pairs * 2.0**policy.security)
        if bad < k - lost:
            return k, k - lost
    return clients - 1, (clients - 1 + corrupt) // 2 + 1


def quantile(population: int, marked: int, drawn: int, odds: float) -> int:
    """The smallest c for which ``drawn`` of ``population`` hold more than c of the ``marked`` with
    probability 1 / ``odds`` at most; in exact integers."""
    c = min(drawn, marked)
    others = population - marked
    allowed = math.comb(population, drawn) // math.ceil(odds)
    ways, above = math.comb(marked, c) * math.comb(others, drawn - c), 0
    while above + ways <= allowed and c > 0:
        above += ways
        ways = ways * c * (others - drawn + c) // ((marked - c + 1) * (drawn - c + 1))
        c -= 1
    return c


@dataclass(frozen=True)
class Graph:
    """The graph of one tag.

    Args:
        ring: the clients, in the graph's order.
        k: neighbours of each.
        threshold: shares that give a secret back.
    """

    ring: tuple[str, ...]
    k: int
    threshold: int

    @classmethod
    def of(cls, cohort: Sequence[str], seed: bytes, policy: Policy) -> Graph:
        """The cohort in the order of the SHA-256 of seed and id."""
        ring = sorted(cohort, key=lambda client: hashlib.sha256(encode(seed, client)).digest())
        return cls(tuple(ring), *degree(len(ring), policy))

    @property
    def complete(self) -> bool:
        """Whether all pairs mask."""
        return self.k == len(self.ring) - 1

    def neighbours(self, client: str) -> tuple[str, ...]:
        """Whom a client masks with and who helps with its shares, by id."""
        return self._neighbours[client]

    @cached_property
    def _neighbours(self) -> dict[str, tuple[str, ...]]:
        if self.complete:
            names = tuple(sorted(self.ring))
            return {name: (*names[:at], *names[at + 1 :]) for at, name in enumerate(names)}
        twice, reach, found = self.ring * 2, self.k // 2, {}
        for place, client in enumerate(self.ring):
            after = twice[place + 1 : place + 1 + reach]
            before = twice[place + len(self.ring) - reach : place + len(self.ring)]
            found[client] = tuple(sorted(before + after))
        return found

    def holds(self, survivors: Collection[str]) -> bool:
        """Whether a sum over ``survivors`` protects them and can be unmasked.

        With all pairs: each has a threshold of neighbours among them. Else each two runs of k/2
        places that do not overlap have, so that one of these is honest and no cut is made.
        """
        clients, run = len(self.ring), self.k // 2
        if self.complete:
            return len(survivors) > self.threshold
        there = np.array([client in survivors for client in self.ring], np.int64)
        sums = np.concatenate([[0], np.cumsum(np.concatenate([there, there[:run]]))])
        runs = np.concatenate([sums[run : run + clients] - sums[:clients]] * 2)
        return all(
            runs[place] + runs[place + run : place + clients - run + 1].min() >= self.threshold
            for place in range(clients)
        )
