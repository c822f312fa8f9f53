"""Bounds from one run: by hand, by linear programs, and on mechanisms that are known."""

from __future__ import annotations

from itertools import combinations
from math import exp, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import ndtr, ndtri
from scipy.stats import binom, norm
from torch import Tensor

from fedpers.privacy.audit.one_run import (
    guess,
    inclusion_scores,
    least_probability,
    mu_by_guesses,
    mu_by_projection,
)
from fedpers.privacy.gdp import epsilon_at


def chance(canaries: int, guesses: int, correct: int, mu: float) -> float:
    """The largest chance of so many right guesses that mu-GDP allows."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        possible = least_probability(canaries, guesses, correct, mu, middle) <= 1
        low, high = (middle, high) if possible else (low, middle)
    return low


def test_epsilon_at() -> None:
    # The analytic Gaussian mechanism: sigma 3.7306 gives (1, 1e-5), 0.6002 gives (8, 1e-5).
    assert epsilon_at(1 / 3.730632, 1e-5) == pytest.approx(1, abs=1e-4)
    assert epsilon_at(1 / 0.600229, 1e-5) == pytest.approx(8, abs=1e-4)
    assert epsilon_at(0, 1e-5) == epsilon_at(1e-6, 1e-5) == 0
    assert epsilon_at(1e8, 1e-5) == pytest.approx(0.5e16, rel=1e-6)


def test_one_guess_by_hand() -> None:
    """The best guess at one fair coin is right with chance Phi(mu / 2)."""
    for mu in (0.0, 0.5, 2.0):
        assert chance(1, 1, 1, mu) == pytest.approx(float(ndtr(mu / 2)))
    # At mu = 0 guesses are coins, and may still all hang together.
    assert chance(10, 10, 10, 0.0) == pytest.approx(2**-10)
    assert mu_by_guesses(100, 100, 50) == mu_by_guesses(4, 4, 4) == mu_by_guesses(9, 0, 0) == 0
    assert mu_by_guesses(5, 5, 5) > 0  # 1/32 < 0.05


def by_program(m: int, r: int, correct: int, mu: float, every: bool) -> float:
    """The largest P[W >= correct] under the constraints themselves, as a linear program.

    x <= Phi(Phi^-1(y) + mu) by tangents, for events "W is in T": all T, or those of the recursion.
    """
    sets = [range(k, r + 1) for k in range(1, r + 1)]
    if every:
        sets = [t for n in range(1, r + 1) for t in combinations(range(1, r + 1), n)]
    at = ndtr(np.linspace(-9, 9, 600))
    slope = np.exp(-mu * ndtri(at) - mu**2 / 2)
    offset = ndtr(ndtri(at) + mu) - slope * at
    rows = []
    for t in sets:
        x, y = np.zeros(r + 1), np.zeros(r + 1)
        for i in t:
            x[i] += i / m
            y[i - 1] += (r - i + 1) / m
        rows.append(x - slope[:, None] * y)
    found = linprog(
        -(np.arange(r + 1) >= correct).astype(float),
        A_ub=np.concatenate(rows),
        b_ub=np.tile(offset, len(sets)),
        A_eq=np.ones((1, r + 1)),
        b_eq=[1.0],
    )
    return float(-found.fun)


@pytest.mark.parametrize("mu", [0.3, 1.5])
@pytest.mark.parametrize(("m", "r", "correct"), [(12, 12, 10), (30, 8, 7), (9, 6, 6), (40, 20, 13)])
def test_the_recursion_solves_its_program(m: int, r: int, correct: int, mu: float) -> None:
    assert chance(m, r, correct, mu) == pytest.approx(
        by_program(m, r, correct, mu, False), rel=2e-3
    )


def test_little_is_given_away() -> None:
    """The recursion asks for less than all events would: it stays above them, and near."""
    for mu, r in ((0.3, 5), (1.5, 7)):
        exact = by_program(10, r, r - 1, mu, True)
        assert 0.8 * chance(10, r, r - 1, mu) < exact < chance(10, r, r - 1, mu)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40), st.floats(0, 3))
def test_more_right_guesses_prove_more(a: int, b: int, c: int, mu: float) -> None:
    correct, guesses, m = sorted([a, b, c])
    assert chance(m, guesses, correct, mu) <= chance(m, guesses, correct, mu + 0.1) + 1e-9
    if correct < guesses:
        more = chance(m, guesses, correct + 1, mu)
        assert more <= chance(m, guesses, correct, mu) + 1e-9


def test_a_mechanism_that_seldom_tells_much_is_not_accused() -> None:
    """With chance 0.06 it gives each of 1,000 coins away at odds of e^0.6, else nothing. That is
    0.27-GDP; independent guesses of that mu would hardly ever be right so often."""
    odds, mu = 0.6, 0.27
    for epsilon in np.linspace(0, odds, 60):
        delta = 0.06 * (exp(odds) - exp(epsilon)) / (1 + exp(odds))
        allowed = ndtr(mu / 2 - epsilon / mu) - exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)
        assert delta <= allowed + 1e-3
    right = round(1000 / (1 + exp(-odds)))
    assert binom.sf(right - 1, 1000, ndtr(mu / 2)) < 1e-6
    assert 0.15 < mu_by_guesses(1000, 1000, right) <= mu


@pytest.mark.parametrize("numbers", [(5, 6, 1), (5, 3, 4), (5, 3, -1)])
def test_numbers_that_do_not_fit_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="takes canaries >= guesses >= correct >= 0"):
        mu_by_guesses(*numbers)


def test_the_extremes_are_guessed() -> None:
    included = torch.arange(100) % 2 == 0
    assert guess(included.double(), included, 0.8) == (80, 80)
    assert guess(-included.double(), included, 0.8) == (80, 0)
    scores = torch.zeros(100).double()
    scores[0:10:2], scores[1:10:2] = 1.0, -1.0
    assert guess(scores, included, 0.1) == (10, 10)


def test_scores_by_hand() -> None:
    # Orthogonal influences of length 2; S - 1/2 is +, - 1/2. The coins explain 2 of the squares 11,
    # which leaves a variance of 3 in three dimensions: 2 / (4 + 4 * 3) of each is left.
    influences = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]])
    observed = torch.tensor([1.0, -1.0, 3.0])
    expected = torch.tensor([0.125, -0.125]).double()
    torch.testing.assert_close(inclusion_scores(observed, influences), expected, atol=1e-6, rtol=0)
    # The same in fewer dimensions than canaries.
    wide = torch.tensor([[2.0, 0], [0, 2.0], [0, 0]])
    found = inclusion_scores(torch.tensor([3.0, -1.0]), wide)
    expected = torch.tensor([6 / 20, -2 / 20, 0]).double()  # (10 - 2) / 2 is the noise's variance
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_scores_tell_alike_canaries_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(300, generator=generator)
    influences = common + 0.2 * torch.randn(50, 300, generator=generator)
    inside = torch.rand(50, generator=generator) < 0.5
    observed = influences.T @ (inside.float() - 0.5)
    products = influences @ observed
    scores = inclusion_scores(observed, influences)
    assert torch.equal(scores > 0, inside)
    assert not torch.equal(products > 0, inside)  # what inner products alone would say


def test_canaries_that_change_nothing_show_nothing() -> None:
    none, included = torch.zeros(3, 5), torch.tensor([True, False, True])
    assert torch.equal(inclusion_scores(torch.ones(5), none), torch.zeros(3).double())
    assert mu_by_projection(torch.ones(5), torch.zeros(5), none, included) == 0


def test_the_projection_by_hand() -> None:
    """Two canaries of length 2, one in, one out: the shift is (1, -1, 0, ...), of length sqrt 2."""
    influences, included = 2 * torch.eye(2, 10), torch.tensor([True, False])
    shift = torch.tensor([1.0, -1.0] + [0.0] * 8)
    rest = torch.tensor([1.0, 1.0] + [0.0] * 8)
    found = mu_by_projection(5 * shift + rest, shift, influences, included, confidence=0.9)
    # Along: 5 sqrt 2. Beside: the squares 2 over 9 dimensions; but where the canaries are,
    # (2^2 + 2^2) / (2^2 + 2^2) = 1: the larger. One canary has length 2, the shift sqrt 2.
    ratio = 5 * sqrt(2)
    least = ratio - norm.ppf(0.9) * sqrt(1 + ratio**2 / 18)
    assert found == pytest.approx(least * 2 / sqrt(2), rel=1e-6)
    # In other units, and with an influence known up to a factor, it is the same.
    scaled = mu_by_projection(
        3 * (5 * shift + rest), shift, 7 * influences, included, confidence=0.9
    )
    assert scaled == pytest.approx(found, rel=1e-6)
    assert mu_by_projection(-shift + rest, shift, influences, included) == 0
    # Dimensions that hold nothing are none.
    wide = (F.pad(x, (0, 5)) for x in (5 * shift + rest, shift, influences))
    again = mu_by_projection(*wide, included=included, confidence=0.9, hidden=5)
    assert again == pytest.approx(found, rel=1e-6)


def alike(canaries: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Influences of length 1, a third of each in one of five directions that they share."""
    own = torch.randn(canaries, dimensions, generator=generator)
    shared = torch.randn(5, dimensions, generator=generator)
    own = own / own.norm(dim=1, keepdim=True)
    group = shared[torch.arange(canaries) % 5] / dimensions**0.5
    return F.normalize(own + 0.7 * group)


@pytest.mark.parametrize("kind", ["apart", "alike", "two deviations", "wrongly expected"])
def test_a_noised_sum_is_accused_as_seldom_as_promised(kind: str) -> None:
    """mu is exceeded in about 4 % of 500 runs at most, whatever the canaries are like."""
    generator = torch.Generator().manual_seed(3)
    m, d, over, bounds = 200, 400, 0, []
    influences = torch.eye(m, d) if kind == "apart" else alike(m, d, generator)
    deviations, offset = torch.full((d,), 1.5), torch.zeros(d)
    if kind == "two deviations":  # as of two phases with learning rates of their own
        deviations[200:] = 0.3
        influences[:, 200:] *= 0.2
    if kind == "wrongly expected":
        offset = influences[:40].sum(0)
    mu = float((influences / deviations).norm(dim=1).max())
    for _ in range(500):
        included = torch.rand(m, generator=generator) < 0.5
        shift = (included.float() - 0.5) @ influences
        observed = shift + offset + deviations * torch.randn(d, generator=generator)
        bounds.append(mu_by_projection(observed, shift, influences, included))
        over += bounds[-1] > mu
    assert over <= 32  # of chance 1 % at a rate of 4 %
    least = {"apart": 0.35, "alike": 0.35, "two deviations": 0.2, "wrongly expected": 0.05}
    assert np.median(bounds) > least[kind]


def test_broken_noise_shows() -> None:
    """(1, 1e-5) by 1,000 orthogonal canaries: as claimed, with half the noise, and with none."""
    generator = torch.Generator().manual_seed(1)
    m, d = 1000, 1100
    included = torch.rand(m, generator=generator) < 0.5
    influences = torch.eye(m, d)
    shift = (included.float() - 0.5) @ influences
    noise = torch.randn(d, generator=generator)

    def bound(sigma: float) -> float:
        mu = mu_by_projection(shift + sigma * noise, shift, influences, included)
        return epsilon_at(mu, 1e-5)

    assert 0.1 < bound(3.7306) < 1 < bound(3.7306 / 2) < 2.5
    assert bound(0.0) > 1e6
