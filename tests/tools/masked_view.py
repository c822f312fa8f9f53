"""The server's whole view of a sum, with secrets of some clients, turned against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpers.channels.masked import masks, shamir
from fedpers.channels.masked.client import MaskedClient, derived, opened
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.session import Session, Terms


def pieces(row: bytes) -> list[bytes]:
    """Shares one by one."""
    return [row[at : at + shamir.BYTES] for at in range(0, len(row), shamir.BYTES)]


class View:
    """What was said under one tag, and how much can be made of it.

    Args:
        terms: that were proposed.
        session: of these terms.
        clients: of the cohort; only those that are called corrupt are used.
        uploads: of those who are in the sum.
        shares: that helpers gave.
    """

    def __init__(
        self,
        terms: Terms,
        session: Session,
        clients: Mapping[str, MaskedClient],
        uploads: Mapping[str, Upload],
        shares: Sequence[Shares],
    ) -> None:
        self.terms, self.session, self.clients = terms, session, clients
        self.uploads, self.shares, self.there = uploads, shares, tuple(uploads)

    def row(self, owner: str, helper: str) -> bytes:
        """A corrupt helper's shares of an owner's seeds."""
        client, boxed, upload = (
            self.clients[helper],
            self.session.boxed(owner),
            self.uploads[owner],
        )
        key, count = (
            client._key(self.session, owner, upload.commitments[:32]),
            len(self.session.places(owner)),
        )
        if helper not in boxed:
            return derived(key, count)
        size, at = len(upload.boxes) // len(boxed), boxed.index(helper)
        found = opened(key, upload.boxes[at * size : (at + 1) * size], count)
        assert found is not None
        return found

    def seeds(self, corrupt: tuple[str, ...]) -> dict[tuple[str, str], bytes]:
        """(owner, other) -> each seed that can be had."""
        graph = self.session.graph
        known: dict[tuple[str, str], dict[int, bytes]] = {}
        for answer in self.shares:
            for owner, row in answer.owners.items():
                others = (owner, *self.session.lost(owner, self.there))
                point = self.session.places(owner)[answer.client]
                for other, share in zip(others, pieces(row), strict=True):
                    known.setdefault((owner, other), {})[point] = share
        for owner in self.uploads:
            for helper in set(graph.neighbours(owner)) & set(corrupt):
                places = self.session.places(owner)
                for other, share in zip(places, pieces(self.row(owner, helper)), strict=True):
                    known.setdefault((owner, other), {})[places[helper]] = share
        found = {
            pair: shamir.combine(shares)
            for pair, shares in known.items()
            if len(shares) >= graph.threshold
        }
        for name in corrupt:
            for other in graph.neighbours(name):
                found[other, name] = self.clients[name]._pair(self.session, other)
        return found

    def findings(self, corrupt: tuple[str, ...]) -> dict[str, masks.Words]:
        """For each honest survivor its upload without the masks that are known."""
        seeds, layout, found = self.seeds(corrupt), self.terms.layout, {}
        for victim in set(self.there) - set(corrupt):
            left = layout.unpacked(self.uploads[victim].vector)
            for other in (victim, *self.session.graph.neighbours(victim)):
                seed = seeds.get((victim, other), seeds.get((other, victim)))
                if seed is not None:
                    masks.add(left, seed, -masks.side(victim, other))
            found[victim] = layout.unpacked(layout.packed(left))
        return found
