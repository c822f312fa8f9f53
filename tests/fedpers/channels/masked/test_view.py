"""The server's whole view of a round, with secrets of some clients, turned against the others.

The attack takes all that the view gives: the boxes of corrupt helpers, the shares that helpers
gave, the pair seeds of corrupt clients, each seed of which it has a threshold of shares. What is
left of an upload without the masks that it knows is its finding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from maskers import Cohort

from fedpers.channels.masked import masks, shamir
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.session import Session, Terms

PAIRS = Policy(minimum=3, corrupt=1 / 3, dropouts=0.25)
SPARSE = replace(PAIRS, all_pairs=5, security=3, correctness=3)


class View:
    """A round of twelve clients in which two are lost, and what the server has of it."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self.cohort = Cohort(folder, 12, policy, length=300)
        self.terms: Terms = self.cohort.terms()
        self.session = Session(self.terms, self.cohort.registry, policy)
        self.words = self.cohort.words(self.terms)
        self.there = self.terms.cohort[:10]
        server = self.cohort.uploaded(self.terms, self.words, ())
        self.uploads = {}
        for name in self.there:
            data = self.cohort.clients[name].mask(self.terms, self.words[name])
            self.uploads[name] = Upload.from_bytes(data)
            server.receive(data)
        server.close()
        self.cohort.signed(self.terms, server, self.there)
        self.shares = []
        for name, asked in server.requests().items():
            client = self.cohort.clients[name]
            given = client.reveal(self.terms, asked.survivors, asked.signatures, asked.boxes)
            self.shares.append(Shares.from_bytes(given))
            server.receive_shares(given)
        self.total = server.unmask()

    def row(self, owner: str, helper: str) -> list[int]:
        """A corrupt helper's shares of an owner's seeds."""
        client, boxed = self.cohort.clients[helper], self.session.boxed(owner)
        if helper not in boxed:
            return client._derived(self.session, owner, helper)
        boxes = self.uploads[owner].boxes
        size, at = len(boxes) // len(boxed), boxed.index(helper)
        found = client._opened(self.session, owner, boxes[at * size : (at + 1) * size])
        assert found is not None
        return found

    def seeds(self, corrupt: tuple[str, ...]) -> dict[tuple[str, str], int]:
        """(owner, other) -> each seed that can be had."""
        graph = self.session.graph
        known: dict[tuple[str, str], dict[int, list[int]]] = {}
        for answer in self.shares:
            for owner, row in answer.owners.items():
                others = (owner, *self.session.lost(owner, self.there))
                point = self.session.places(owner)[answer.client]
                for other, share in zip(others, shamir.elements(row), strict=True):
                    known.setdefault((owner, other), {})[point] = [share]
        for owner in self.uploads:
            for helper in set(graph.neighbours(owner)) & set(corrupt):
                places = self.session.places(owner)
                for other, share in zip(places, self.row(owner, helper), strict=True):
                    known.setdefault((owner, other), {})[places[helper]] = [share]
        found = {
            pair: shamir.combine(shares)[0]
            for pair, shares in known.items()
            if len(shares) >= graph.threshold
        }
        for name in corrupt:
            for other in graph.neighbours(name):
                found[other, name] = self.cohort.clients[name]._pair(self.session, other)
        return found

    def findings(self, corrupt: tuple[str, ...]) -> dict[str, masks.Words]:
        """For each honest survivor its upload without the masks that are known."""
        seeds, layout, found = self.seeds(corrupt), self.cohort.layout, {}
        for victim in set(self.there) - set(corrupt):
            left = layout.unpacked(self.uploads[victim].vector)
            for other in (victim, *self.session.graph.neighbours(victim)):
                seed = seeds.get((victim, other), seeds.get((other, victim)))
                if seed is not None:
                    masks.add(left, seed, -masks.side(victim, other))
            found[victim] = layout.unpacked(layout.packed(left))
        return found


@pytest.fixture(scope="module", params=[PAIRS, SPARSE], ids=["all pairs", "sparse"])
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> View:
    return View(tmp_path_factory.mktemp("view"), request.param)


@pytest.mark.parametrize("chosen", range(6))
def test_a_third_of_the_clients_and_the_server_find_the_sum_of_the_others_alone(
    view: View, chosen: int
) -> None:
    corrupt = tuple(np.random.default_rng(chosen).permutation(view.terms.cohort)[:4].tolist())
    layout, field = view.cohort.layout, view.cohort.layout.fields[0]
    found = view.findings(corrupt)
    for victim, left in found.items():
        true = layout.integers(view.words[victim], field).astype(float)
        guess = layout.integers(left, field)
        assert (guess == true).mean() < 0.03
        assert abs(np.corrcoef(true, guess.astype(float))[0, 1]) < 5 / 300**0.5
        ones = np.unpackbits(guess.astype("<u4").view(np.uint8), bitorder="little")
        shown = ones.reshape(len(guess), -1)[:, : layout.width(field)]
        assert abs(shown.mean() - 0.5) < 5 * 0.5 / shown.size**0.5
    honest = sorted(found)
    total = np.sum([found[name] for name in honest], axis=0, dtype=np.uint64)
    true_total = np.sum([view.words[name] for name in honest], axis=0, dtype=np.uint64)
    same = layout.packed(total) == layout.packed(true_total)
    assert same  # which the true sum minus the corrupt clients' own words tells anyway


def test_the_same_attack_with_everybody_else_s_secrets_finds_the_update(view: View) -> None:
    victim = view.there[0]
    corrupt = tuple(name for name in view.terms.cohort if name != victim)
    assert (view.findings(corrupt)[victim] == view.words[victim]).all()


def test_what_was_revealed_of_one_round_opens_nothing_of_the_next(tmp_path: Path) -> None:
    """The same clients and vectors under the next tag: the seeds had are other ones."""
    view = View(tmp_path, PAIRS)
    seeds = view.seeds(view.terms.cohort[:4])
    terms = view.cohort.terms()
    session = Session(terms, view.cohort.registry, PAIRS)
    later = {
        view.cohort.clients[one]._pair(session, other)
        for one in view.there
        for other in session.graph.neighbours(one)
    }
    assert seeds and not later & set(seeds.values())


def test_own_seeds_are_fresh_for_each_client_and_tag(tmp_path: Path) -> None:
    views = [View(tmp_path / "one", PAIRS), View(tmp_path / "two", PAIRS)]
    own = {view.seeds(())[one, one] for view in views for one in view.there}
    assert len(own) == 20 and min(own) > 2**64


def test_shares_that_are_derived_are_of_one_owner_helper_and_tag(tmp_path: Path) -> None:
    """Both ends derive the same row, and no other row has one of its elements."""
    cohort = Cohort(tmp_path, 4, PAIRS)
    sessions = [Session(cohort.terms(), cohort.registry, PAIRS) for _ in range(2)]
    rows = []
    for session in sessions:
        for owner, client in cohort.clients.items():
            for helper in session.graph.neighbours(owner):
                row = client._derived(session, owner, helper)
                assert row == cohort.clients[helper]._derived(session, owner, helper)
                rows += row
    assert len(set(rows)) == len(rows) == 2 * 4 * 3 * 4
