"""Whole rounds: the sum is exact or there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maskers import Cohort, added

from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Dropped
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.privacy.noise import known

PAIRS = Policy(minimum=2, corrupt=0.2, dropouts=0.3)
SPARSE = replace(PAIRS, all_pairs=3, security=2, correctness=2)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_all_pairs_give_the_exact_sum(tmp_path: Path, count: int) -> None:
    cohort = Cohort(tmp_path, count, PAIRS)
    terms = cohort.terms()
    words = cohort.words(terms)
    assert (cohort.sum(terms, words, terms.cohort) == added(words, terms.cohort)).all()


def test_a_sparse_graph_of_a_hundred_and_one_gives_the_exact_sum(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 101, replace(PAIRS, corrupt=0.1, dropouts=0.2))
    terms = cohort.terms()
    assert len(terms.contributions) == 101
    names = [name for place, name in enumerate(terms.cohort) if place % 6]  # 17 of 101 are lost
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, names)
    assert server.session.graph.k == 28
    server.close()
    cohort.signed(terms, server, names[3:])
    cohort.revealed(terms, server, names[6:])
    assert (server.unmask() == added(words, names)).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whoever_is_lost_whenever_the_sum_is_exact_or_there_is_none(data: st.DataObject) -> None:
    """Lost before the upload, before signing, before shares, in both kinds of graph."""
    policy = data.draw(st.sampled_from([PAIRS, SPARSE]))
    count = data.draw(st.integers(2, 14))
    with TemporaryDirectory() as folder:
        cohort = Cohort(Path(folder), count, policy, length=data.draw(st.integers(1, 5)))
        terms = cohort.terms()
        words = cohort.words(terms, data.draw(st.integers(0, 9)))
        lost = st.sets(st.sampled_from(terms.cohort), max_size=max(1, count // 3))
        uploaded = sorted(set(terms.cohort) - data.draw(lost))
        signed = sorted(set(uploaded) - data.draw(lost))
        revealed = sorted(set(signed) - data.draw(lost))
        server = cohort.uploaded(terms, words, uploaded)
        try:
            server.close()
            cohort.signed(terms, server, signed)
            cohort.revealed(terms, server, revealed)
            found = server.unmask()
        except Dropped as dropped:
            assert "the round is dropped" in str(dropped)
            assert len(revealed) < count
        else:
            assert (found == added(words, uploaded)).all()
            assert not server.suspects


def test_a_third_may_be_lost_where_no_client_is_corrupt(tmp_path: Path) -> None:
    """20 clients, none corrupt: 11 sign, and 10 shares of each seed are enough."""
    cohort = Cohort(tmp_path, 20, Policy(corrupt=0.0, dropouts=0.4))
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[:16])
    assert (server.session.quorum, server.session.graph.threshold) == (11, 10)
    server.close()
    cohort.signed(terms, server, terms.cohort[:12])
    cohort.revealed(terms, server, terms.cohort[:11])
    assert (server.unmask() == added(words, terms.cohort[:16])).all()


def test_below_the_threshold_the_round_is_dropped_and_the_next_one_is_not(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 20, Policy(corrupt=0.0, dropouts=0.4))
    for uploads, signs, shares, match in [
        (10, 10, 10, "survivors: got 10, takes 11 or more"),
        (16, 10, 10, "10 signed, takes 11"),
        (16, 16, 9, "shares of .* seeds, takes 10"),
    ]:
        terms = cohort.terms(cohort.tag)
        words = cohort.words(terms)
        server = cohort.uploaded(terms, words, terms.cohort[:uploads])
        with pytest.raises(Dropped, match=match):
            server.close()
            cohort.signed(terms, server, terms.cohort[:signs])
            cohort.revealed(terms, server, terms.cohort[:shares])
            server.unmask()
    terms = cohort.terms(cohort.tag)
    words = cohort.words(terms)
    assert (cohort.sum(terms, words, terms.cohort) == added(words, terms.cohort)).all()


def test_some_of_the_registry_make_a_cohort(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 9, PAIRS)
    terms = cohort.terms(names=list(cohort.clients)[2:8])
    words = cohort.words(terms)
    assert (cohort.sum(terms, words, terms.cohort) == added(words, terms.cohort)).all()


def test_parts_and_reports_of_a_round_are_those_without_masks_bit_for_bit(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 6, PAIRS)
    fields = [
        Field("body", 1000, (-0.5, 0.5), 12),
        Field("head", 17, (-2, 2), 16),
        Field("loss", 1, (0, 5), 16),
        Field("examples", 1, (0, 4095), 12, weighted=False),
    ]
    cohort.layout = Layout(fields, 6)
    terms = cohort.terms()
    generator = np.random.default_rng(1)
    words = {
        name: cohort.layout.quantised(
            {
                "body": generator.normal(0, 0.3, 1000).astype(np.float32),
                "head": generator.normal(0, 1, 17),
                "loss": np.array([0.7]),
                "examples": np.array([100 + place]),
            },
            (100 + place) / 105,
            known(0)("quantise", name),
        )
        for place, name in enumerate(terms.cohort)
    }
    total = cohort.sum(terms, words, terms.cohort)
    found, wanted = cohort.layout.sums(total, 6), cohort.layout.sums(added(words, words), 6)
    assert all((found[name] == wanted[name]).all() for name in wanted)
    assert found["examples"].tolist() == [615.0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", [PAIRS, SPARSE], ids=["all pairs", "sparse"])
def test_a_hundred_rounds_with_three_in_ten_lost_somewhere(tmp_path: Path, policy: Policy) -> None:
    """Before the upload, after it and while it is unmasked, at random; some rounds are dropped."""
    cohort = Cohort(tmp_path, 20, policy)
    generator, exact = np.random.default_rng(0), 0
    for turn in range(100):
        terms = cohort.terms(turn)
        words = cohort.words(terms, turn)
        stages = generator.choice(4, 20, p=[0.1, 0.1, 0.1, 0.7])
        there = [
            [name for name, stage in zip(terms.cohort, stages, strict=True) if stage > step]
            for step in range(3)
        ]
        server = cohort.uploaded(terms, words, there[0])
        try:
            server.close()
            cohort.signed(terms, server, there[1])
            cohort.revealed(terms, server, there[2])
            found = server.unmask()
        except Dropped:
            continue
        assert (found == added(words, there[0])).all()
        exact += 1
    assert 60 <= exact <= 100


@pytest.mark.parametrize(
    "clients",
    [
        200,
        pytest.param(1000, marks=pytest.mark.slow),
        pytest.param(5000, marks=pytest.mark.slow),
    ],
)
def test_of_many_clients_three_in_ten_are_lost_somewhere(tmp_path: Path, clients: int) -> None:
    """Of them one in ten may be corrupt and one in five be lost before the upload; more are lost
    after it."""
    cohort = Cohort(tmp_path, clients, Policy(corrupt=0.1, dropouts=0.2))
    terms = cohort.terms()
    words = cohort.words(terms)
    order = np.random.default_rng(0).permutation(terms.cohort).tolist()
    there = sorted(order[: int(0.85 * clients)])
    server = cohort.uploaded(terms, words, there)
    server.close()
    cohort.signed(terms, server, order[: int(0.8 * clients)])
    cohort.revealed(terms, server, order[: int(0.7 * clients)])
    assert (server.unmask() == added(words, there)).all()
