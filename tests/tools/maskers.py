"""A cohort that masks, and a round of it with losses wherever a test wants them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.client import MaskedClient, Plan, carry_out
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.masks import Words
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Survivors, Terms


@cache
def identity(number: int) -> Identity:
    """The same keys in all tests, so the same graphs; what is drawn in a round is fresh."""
    keys = (sha256(f"{purpose} {number}".encode()).digest() for purpose in ("a", "s", "c"))
    return Identity(f"client-{number:04d}", *keys)


class Cohort:
    """Clients with real keys and files under ``folder``."""

    def __init__(self, folder: Path, count: int, policy: Policy, length: int = 7) -> None:
        identities = [identity(number) for number in range(count)]
        self.policy = policy
        self.registry = Registry([one.public for one in identities])
        self.layout = Layout([Field("body", length, (-1.0, 1.0), 12)], count)
        self.memory = Memory(folder / "served.json", durable=False)
        self.memory.enrol([one.client for one in identities])
        self.clients = {
            one.client: MaskedClient(one, self.registry, policy, self.memory) for one in identities
        }
        self.tag = 0

    def terms(self, round_number: int = 0, names: Sequence[str] | None = None) -> Terms:
        """A fresh tag, with contributions where the graph needs them."""
        self.tag += 1
        cohort = tuple(sorted(names or self.clients))
        return self.joined(Terms("run", round_number, self.tag, cohort, self.layout))

    def joined(self, terms: Terms) -> Terms:
        """The terms with everybody's contribution, if the graph needs them."""
        one = self.clients[terms.cohort[0]]
        if not one._session(terms).sparse:
            return terms
        given = answered([self.clients[name].advertising(terms) for name in terms.cohort])
        return replace(terms, contributions=tuple(given[name] for name in terms.cohort))

    def words(self, terms: Terms, seed: int = 0) -> dict[str, Words]:
        """A vector for each client: any words that could be its quantised update."""
        generator = np.random.default_rng(seed)
        field = self.layout.fields[0]
        found = {}
        for name in terms.cohort:
            values = generator.integers(0, field.steps, field.length, endpoint=True)
            found[name] = placed(self.layout, values)
        return found

    def uploaded(
        self, terms: Terms, words: dict[str, Words], names: Collection[str]
    ) -> MaskedServer:
        """A server that has the uploads of ``names``."""
        server = MaskedServer(terms, self.registry, self.policy)
        plans = [self.clients[name].uploading(terms) for name in names]
        for name, own in answered(plans).items():
            server.receive(name, self.clients[name].masked(terms, own, words[name]))
        return server

    def signed(self, terms: Terms, server: MaskedServer, names: Collection[str]) -> None:
        """The signatures of ``names``, in."""
        plans = [self.clients[name].signing(terms, server.survivors) for name in names]
        for name, signature in answered(plans).items():
            server.receive_signature(name, signature)

    def revealed(self, terms: Terms, server: MaskedServer, names: Collection[str]) -> None:
        """The shares of ``names``, in."""
        for name, data in answered(self.revealing(terms, server, names)).items():
            server.receive_shares(name, data)

    def revealing(self, terms: Terms, server: MaskedServer, names: Collection[str]) -> list[Plan]:
        """What those of ``names`` that signed are about to give."""
        shown = server.survivors, server.signatures
        return [
            self.clients[name].revealing(terms, *shown, boxes)
            for name, boxes in server.boxes().items()
            if name in names
        ]

    def sum(self, terms: Terms, words: dict[str, Words], names: Collection[str]) -> Words:
        """A round in which all of ``names`` stay to the end."""
        server = self.uploaded(terms, words, names)
        server.close()
        self.signed(terms, server, names)
        self.revealed(terms, server, names)
        return server.unmask()


def answered(plans: Sequence[Plan]) -> dict[str, bytes]:
    """What clients say, none of whom refuses, in their order."""
    found = carry_out(plans)
    for answer in found.values():
        if isinstance(answer, Exception):
            raise answer
    return {plan.client: found[plan.client] for plan in plans}  # type: ignore[misc]


def of(shown: Survivors, names: Sequence[str]) -> Survivors:
    """The set of ``names``, in that order, whose uploads are called as in ``shown``; who is not in
    it has sent nothing that anybody knows."""
    return {name: shown.get(name, bytes(32)) for name in names}


def placed(layout: Layout, values: np.ndarray) -> Words:
    """Integers of the first field as words; all the others 0."""
    field = layout.fields[0]
    place, shared = layout._places[field.name]
    padded = np.zeros((place.stop - place.start) * shared, np.uint64)
    padded[: len(values)] = values
    found = np.zeros(layout.words, np.uint64)
    for slot in range(shared):
        found[place] |= padded[slot::shared] << np.uint64(slot * layout.width(field))
    return found


def added(words: dict[str, Words], names: Collection[str]) -> Words:
    """The sum that has to come out."""
    return np.sum([words[name] for name in names], axis=0, dtype=np.uint64)
