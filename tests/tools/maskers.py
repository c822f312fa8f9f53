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
from fedpers.channels.masked.client import MaskedClient
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.masks import Words
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.messages import Request
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Terms


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
        self.clients = {
            one.client: MaskedClient(
                one, self.registry, policy, Memory.create(folder / f"{one.client}.json")
            )
            for one in identities
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
        given = tuple(self.clients[name].advertise(terms) for name in terms.cohort)
        return replace(terms, contributions=given)

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
        for name in names:
            server.receive(self.clients[name].mask(terms, words[name]))
        return server

    def signed(self, terms: Terms, server: MaskedServer, names: Collection[str]) -> None:
        """The signatures of ``names``, in."""
        for name in names:
            server.receive_signature(name, self.clients[name].sign(terms, server.survivors))

    def revealed(self, terms: Terms, server: MaskedServer, names: Collection[str]) -> None:
        """The shares of ``names``, in."""
        for name, request in server.requests().items():
            if name in names:
                client, asked = self.clients[name], Request.from_bytes(request.to_bytes())
                given = client.reveal(terms, asked.survivors, asked.signatures, asked.boxes)
                server.receive_shares(given)

    def sum(self, terms: Terms, words: dict[str, Words], names: Collection[str]) -> Words:
        """A round in which all of ``names`` stay to the end."""
        server = self.uploaded(terms, words, names)
        server.close()
        self.signed(terms, server, names)
        self.revealed(terms, server, names)
        return server.unmask()


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
