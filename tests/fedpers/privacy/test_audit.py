"""The audit's arithmetic: bounds by hand, by brute force, and on mechanisms that are known."""

from __future__ import annotations

from fractions import Fraction
from math import comb, exp, log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.privacy.audit import (
    auc,
    bound_by_scores,
    epsilon_lower_bound,
    inclusion_scores,
    lira,
    p_value,
    psnr,
    total_variation,
    tpr_at,
)


def test_p_value_by_hand() -> None:
    # One guess, right: q + 2 delta (1 - q), with q = 3/4 at epsilon = log 3.
    assert p_value(1, 1, 1, log(3), 0.1) == pytest.approx(0.75 + 0.2 * 0.25)
    # Two of two: q^2, and the larger of 2 q (1 - q) = 3/8 and (1 - q^2) / 2 = 7/32.
    assert p_value(4, 2, 2, log(3), 0.01) == pytest.approx(9 / 16 + 8 * 0.01 * 3 / 8)
    assert p_value(9, 5, 0, 0.5, 1e-3) == 1


def brute_p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> Fraction:
    """The theorem's formula in fractions, term by term."""
    q = Fraction(1 / (1 + exp(-epsilon)))
    mass = [comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    alpha = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=Fraction(0))
    return min(Fraction(1), sum(mass[v:], Fraction(0)) + 2 * m * Fraction(delta) * alpha)


@given(
    st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.floats(0, 6), st.floats(0, 0.1)
)
def test_p_value_is_the_formula(a: int, b: int, c: int, epsilon: float, delta: float) -> None:
    v, r, m = sorted([a, b, c])
    expected = float(brute_p_value(m, r, v, epsilon, delta))
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "numbers", [(5, 6, 1, 1.0, 0.0), (5, 3, 4, 1.0, 0.0), (5, 3, 2, -1.0, 0.0), (5, 3, 2, 1.0, 2.0)]
)
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int, float, float]) -> None:
    with pytest.raises(ValueError, match="takes canaries >= guesses >= correct >= 0"):
        p_value(*numbers)


def test_the_bound_by_hand() -> None:
    # All right, delta 0: q^r = 0.05, and epsilon = log(q / (1 - q)).
    for r in (10, 100, 1000):
        q = 0.05 ** (1 / r)
        assert epsilon_lower_bound(r, r, r, 0.0) == pytest.approx(log(q / (1 - q)), abs=1e-5)
    # Half right refutes nothing; nor do 4 of 4, whose chance is 1/16 at epsilon = 0.
    assert epsilon_lower_bound(100, 100, 50, 0.0) == 0
    assert epsilon_lower_bound(4, 4, 4, 0.0) == 0 < epsilon_lower_bound(5, 5, 5, 0.0)


def test_the_bound_falls_with_delta_and_with_errors() -> None:
    bounds = [epsilon_lower_bound(500, 200, 190, delta) for delta in (0, 1e-5, 1e-4, 1e-3, 1e-2)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1]
    assert epsilon_lower_bound(500, 200, 180, 1e-5) < bounds[1]


def test_randomised_response_is_refuted_as_seldom_as_promised() -> None:
    """It is the worst case of pure DP: the bound exceeds its epsilon in at most 5% of runs."""
    rng, epsilon, over = np.random.default_rng(0), 1.0, 0
    for _ in range(400):
        correct = int(rng.binomial(200, 1 / (1 + exp(-epsilon))))
        over += epsilon_lower_bound(200, 200, correct, 0.0) > epsilon
    assert 2 <= over <= 32  # 20 are expected at most; more than 32 has chance 0.4%


def test_scores_tell_in_from_out_and_their_extremes_are_guessed() -> None:
    included = torch.arange(100) % 2 == 0
    perfect = bound_by_scores(included.double(), included, 0.0)
    assert (perfect.canaries, perfect.guesses, perfect.correct) == (100, 80, 80)
    q = (0.05 / 3) ** (1 / 80)  # Bonferroni over three numbers of guesses
    assert perfect.epsilon == pytest.approx(log(q / (1 - q)), abs=1e-5)
    assert bound_by_scores(-included.double(), included, 0.0).epsilon == 0
    # Only the extremes are right: with 10 guesses it is proved, with 40 or 80 less.
    scores = torch.zeros(100).double()
    scores[0:10:2], scores[1:10:2] = 1.0, -1.0
    assert bound_by_scores(scores, included, 0.0).guesses == 10


def test_scores_by_hand() -> None:
    # Orthogonal influences of length 2; S - 1/2 is +, - 1/2. The rest, 3^2 in one dimension, is
    # the noise's variance: 4 / (4 + 4 * 9) of each is left.
    influences = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]])
    observed = torch.tensor([1.0, -1.0, 3.0])
    expected = torch.tensor([0.05, -0.05]).double()
    torch.testing.assert_close(inclusion_scores(observed, influences), expected)


def test_scores_tell_alike_canaries_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(300, generator=generator)
    influences = common + 0.2 * torch.randn(50, 300, generator=generator)
    inside = torch.rand(50, generator=generator) < 0.5
    observed = influences.T @ (inside.float() - 0.5)
    products = influences @ observed
    scores = inclusion_scores(observed, influences)
    torch.testing.assert_close(scores, inside.double() - 0.5, atol=1e-3, rtol=0)
    assert not torch.equal(products > 0, inside)  # what inner products alone would say


def test_canaries_that_change_nothing_score_zero() -> None:
    scores = inclusion_scores(torch.ones(5), torch.zeros(3, 5))
    assert torch.equal(scores, torch.zeros(3).double())
    with pytest.raises(ValueError, match="fewer canaries"):
        inclusion_scores(torch.ones(3), torch.zeros(3, 3))


def test_a_gaussian_mechanism_is_not_refuted_and_a_silent_one_is() -> None:
    """Sums of 400 orthogonal canaries of norm 1 with noise for (1, 1e-5): sigma about 3.7."""
    included = torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.5
    noise = torch.randn(500, generator=torch.Generator().manual_seed(2))
    influences = torch.eye(400, 500)
    centred = influences.T @ (included.float() - 0.5)
    private = inclusion_scores(centred + 3.73 * noise, influences)
    silent = inclusion_scores(centred + 0.01 * noise, influences)
    assert bound_by_scores(private, included, 1e-5).epsilon < 1
    assert bound_by_scores(silent, included, 1e-5).epsilon > 4


def test_membership_figures_by_hand() -> None:
    members, others = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    # Pairs won: 3 > both, 2 ties and wins, 1 wins one: (2 + 1.5 + 1) / 6.
    assert auc(members, others) == pytest.approx(4.5 / 6)
    assert tpr_at(members, others, 0.01) == pytest.approx(1 / 3)  # above 2, the highest other
    assert tpr_at(members, others, 0.5) == 1  # above 0: one of two others passes
    hundred = np.arange(100.0)
    assert tpr_at(hundred + 0.5, hundred, 0.01) == pytest.approx(0.02)  # 98.5 and 99.5 above 98


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_auc_is_the_share_of_pairs(a: list[int], b: list[int]) -> None:
    pairs = [(x > y) + (x == y) / 2 for x in a for y in b]
    assert auc(np.array(a, float), np.array(b, float)) == pytest.approx(np.mean(pairs))


def test_lira_knows_each_examples_own_level() -> None:
    """Example 0 is easy for all models, example 1 hard; the loss alone would err on both."""
    shadows = np.array([[5.0, -5.0], [5.2, -4.8], [3.0, -7.0], [3.2, -6.8]])
    inside = np.array([[True, True], [True, True], [False, False], [False, False]])
    scores = lira(np.array([3.1, -4.9]), shadows, inside)
    assert scores[0] < 0 < scores[1]
    # Means 5.1 and 3.1 for both; spread 0.01 over 4 - 2 free values, times 1 + 1/2.
    variance = 0.04 / 2 * 1.5
    assert scores[0] == pytest.approx(-0.5 * (2.0**2) / variance)


def test_picture_figures_by_hand() -> None:
    assert psnr(torch.zeros(4), torch.full((4,), 0.2), 2.0) == pytest.approx(20)
    assert psnr(torch.zeros(4), torch.zeros(4), 1.0) == pytest.approx(120)
    x = torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])
    # Down: |0|, |2|, mean 1; across: |1|, |3|, mean 2.
    assert float(total_variation(x)) == 3
    assert float(total_variation(torch.ones(2, 5))) == 0
