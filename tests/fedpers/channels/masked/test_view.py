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
from masked_view import View, pieces
from maskers import Cohort, answered

from fedpers.channels.masked.client import derived
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.session import Session

PAIRS = Policy(minimum=3, corrupt=1 / 3, dropouts=0.25)
SPARSE = replace(PAIRS, all_pairs=5, security=3, correctness=3)


class Round(View):
    """A round of twelve clients in which two are lost, and what the server has of it."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self.cohort = Cohort(folder, 12, policy, length=300)
        terms = self.cohort.terms()
        self.words = self.cohort.words(terms)
        uploads, given = {}, []
        server = self.cohort.uploaded(terms, self.words, ())
        for name in terms.cohort[:10]:
            data = self.cohort.clients[name].mask(terms, self.words[name])
            uploads[name] = Upload.from_bytes(data)
            server.receive(name, data)
        server.close()
        self.cohort.signed(terms, server, uploads)
        for name, data in answered(self.cohort.revealing(terms, server, uploads)).items():
            given.append(data)
            server.receive_shares(name, data)
        self.total = server.unmask()
        session, shares = server.session, [Shares.from_bytes(one) for one in given]
        super().__init__(terms, session, self.cohort.clients, uploads, shares)


@pytest.fixture(scope="module", params=[PAIRS, SPARSE], ids=["all pairs", "sparse"])
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(tmp_path_factory.mktemp("view"), request.param)


@pytest.mark.parametrize("chosen", range(6))
def test_a_third_of_the_clients_and_the_server_find_the_sum_of_the_others_alone(
    view: Round, chosen: int
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


def test_the_same_attack_with_everybody_else_s_secrets_finds_the_update(view: Round) -> None:
    victim = view.there[0]
    corrupt = tuple(name for name in view.terms.cohort if name != victim)
    assert (view.findings(corrupt)[victim] == view.words[victim]).all()


def test_what_was_revealed_of_one_round_opens_nothing_of_the_next(tmp_path: Path) -> None:
    """The same clients and vectors under the next tag: the seeds had are other ones."""
    view = Round(tmp_path, PAIRS)
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
    views = [Round(tmp_path / "one", PAIRS), Round(tmp_path / "two", PAIRS)]
    own = {view.seeds(())[one, one] for view in views for one in view.there}
    assert len(own) == 20 and all(any(seed[:8]) for seed in own)


def test_shares_that_are_derived_are_of_one_owner_helper_and_upload(tmp_path: Path) -> None:
    """Both ends derive the same row, and no other row has one of its elements."""
    cohort = Cohort(tmp_path, 4, PAIRS)
    sessions = [Session(cohort.terms(), cohort.registry, PAIRS) for _ in range(2)]
    shares = []
    for session in sessions:
        for owner, client in cohort.clients.items():
            for helper in session.graph.neighbours(owner):
                for upload in (b"1" * 32, b"2" * 32):
                    row = derived(client._key(session, helper, upload + owner.encode()), 4)
                    assert row == derived(
                        cohort.clients[helper]._key(session, owner, upload + owner.encode()), 4
                    )
                    shares += pieces(row)
    assert len(set(shares)) == len(shares) == 2 * 4 * 3 * 2 * 4
