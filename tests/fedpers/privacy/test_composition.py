"""The composed epsilon against an implementation that shares nothing with it, and against bounds.

Here the characteristic function of the loss is integrated over the noise, raised to the number of
steps, and the hockey-stick divergence is summed from it (COS method, Fang and Oosterlee 2008):
nothing is rounded to a grid of losses.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq

from fedpers.privacy import Gaussian, Release, calibrated, epsilon_of, mu_of
from fedpers.privacy.composition import APART, coarsened
from fedpers.privacy.gdp import epsilon_at, log_delta
from fedpers.privacy.mechanisms.gaussian import delta_of_step

Floats = NDArray[np.float64]
Schedule = list[tuple[float, float, int]]

NODES = 2001  # of the trapezium rule, which is exact to rounding for what decays as a Gaussian does
SCHEDULES: list[tuple[Schedule, float]] = [  # (sigma, rate, steps), delta
    ([(1.0, 0.1, 200)], 1e-5),
    ([(3.0, 1.0, 7), (1.0, 0.1, 200)], 1e-5),
    ([(2.0, 0.5, 100), (1.0, 0.1, 7), (30.0, 0.9, 1)], 1e-6),
    ([(0.7, 0.02, 300), (1.3, 0.3, 11), (5.0, 1.0, 3)], 1e-6),
    ([(40.0, 0.01, 2000), (90.0, 1.0, 1)], 1e-5),  # epsilon 0.045
    ([(300.0, 0.2, 50)], 1e-4),  # 0.0077
    ([(0.3, 0.25, 9), (0.8, 0.6, 30)], 1e-3),  # 50
    ([(1.1, 0.08, 1200), (0.9, 0.25, 77)], 1e-5),
    ([(2.5, 0.004, 9000), (6.0, 0.05, 333), (11.0, 1.0, 1)], 1e-7),
    ([(1.0, 0.999, 17), (4.0, 0.001, 5)], 1e-8),
    ([(0.21, 0.1, 20), (2.0, 1.0, 1)], 1e-5),  # 100
    ([(1.3, 0.013, 4711)], 1e-9),
]


def releases_of(schedule: Schedule) -> list[Release]:
    return [Release(Gaussian(sigma, rate), steps) for sigma, rate, steps in schedule]


def losses(sigma: float, rate: float, *, removed: bool) -> tuple[Floats, Floats]:
    """The loss at nodes of the noised sum, and the nodes' probabilities."""
    x = np.linspace(-12 * sigma, 12 * sigma + 1, NODES)
    width = (x[1] - x[0]) / (sigma * math.sqrt(2 * math.pi))

    def mass(centre: float) -> Floats:
        return np.exp(-(((x - centre) / sigma) ** 2) / 2) * width

    exponent = (x - 0.5) / sigma**2
    if rate == 1:
        return exponent, mass(1.0)
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)
    if removed:
        return loss, (1 - rate) * mass(0.0) + rate * mass(1.0)
    return -loss, mass(0.0)


def epsilon_by_cosines(schedule: Schedule, delta: float, *, removed: bool) -> float:
    kinds = [(*losses(s, q, removed=removed), steps) for s, q, steps in schedule]
    mean = sum(steps * (w @ loss) for loss, w, steps in kinds)
    variance = sum(steps * (w @ (loss - w @ loss) ** 2) for loss, w, steps in kinds)
    start, end = mean - 40 * variance**0.5, mean + 40 * variance**0.5
    pieces: list[Floats] = []
    while True:
        t = np.arange(256 * len(pieces), 256 * (len(pieces) + 1)) * math.pi / (end - start)
        transform = np.ones(256, dtype=complex)
        for loss, w, steps in kinds:
            transform *= (np.exp(1j * np.outer(t, loss)) @ w) ** steps
        pieces.append(2 / (end - start) * np.real(transform * np.exp(-1j * t * start)))
        if np.abs(transform).max() < 1e-15:
            break
    series = np.concatenate(pieces)
    series[0] /= 2
    t = np.arange(len(series)) * math.pi / (end - start)

    def excess(epsilon: float) -> float:
        def primitive(y: float) -> Floats:  # of e^(epsilon - y) cos(t (y - start))
            angle = t * (y - start)
            return np.exp(epsilon - y) * (t * np.sin(angle) - np.cos(angle)) / (1 + t**2)

        ones = np.empty_like(t)
        ones[0] = end - epsilon
        ones[1:] = (np.sin(t * (end - start)) - np.sin(t * (epsilon - start)))[1:] / t[1:]
        return float(series @ (ones - primitive(end) + primitive(epsilon))) - delta

    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, end, xtol=1e-10))


@pytest.mark.parametrize(("schedule", "delta"), SCHEDULES)
def test_epsilon_is_what_an_independent_implementation_finds(
    schedule: Schedule, delta: float
) -> None:
    directions = [epsilon_by_cosines(schedule, delta, removed=x) for x in (True, False)]
    found = epsilon_of(releases_of(schedule), delta)
    assert max(directions) <= found + 1e-9  # from above
    assert found <= max(directions) + 1e-3
    assert found <= max(directions) * (1 + 1e-3)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("steps", [20, 200, 2000])
def test_sigma_is_a_thousandth_above_exact_at_most(epsilon: float, steps: int) -> None:
    sigma = calibrated(Gaussian, epsilon, 1e-4, 0.1, steps).sigma

    def spent(sigma: float) -> float:  # an example that is removed costs more, see below
        return epsilon_by_cosines([(sigma, 0.1, steps)], 1e-4, removed=True)

    assert spent(sigma) <= epsilon < spent(sigma / 1.001)


def test_the_direction_that_costs_more_counts() -> None:
    schedule: Schedule = [(1.0, 0.1, 200)]
    removed, added = (epsilon_by_cosines(schedule, 1e-5, removed=x) for x in (True, False))
    assert added < 0.7 * removed
    assert epsilon_of(releases_of(schedule), 1e-5) == pytest.approx(removed, rel=1e-4)


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.1), (0.4, 0.5), (20.0, 0.003), (3.0, 1.0)])
@pytest.mark.parametrize("removed", [True, False])
def test_the_delta_of_a_step_is_its_integral(sigma: float, rate: float, removed: bool) -> None:
    x = np.linspace(-15 * sigma, 15 * sigma + 1, 400_001)

    def density(centre: float) -> Floats:
        return np.exp(-(((x - centre) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    mixed, plain = (1 - rate) * density(0) + rate * density(1), density(0)
    first, second = (mixed, plain) if removed else (plain, mixed)
    epsilons = np.array([-3.0, -0.7, -0.001, 0.0, 0.002, 0.05, 0.6, 2.0, 5.0])
    by_hand = [np.maximum(first - math.exp(e) * second, 0).sum() * (x[1] - x[0]) for e in epsilons]
    found = delta_of_step(epsilons, sigma, rate, removed=removed)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [([(1.0, 0.1, 200)], 1e-5), ([(1.1, 0.08, 700), (0.9, 0.25, 40), (5.0, 1.0, 3)], 1e-5)],
)
def test_other_accountants_give_no_less_and_prv_nearly_the_same(
    schedule: Schedule, delta: float
) -> None:
    found = epsilon_of(releases_of(schedule), delta)
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = list(schedule)
    assert 0.8 * rdp.get_epsilon(delta) < found < rdp.get_epsilon(delta)
    with np.errstate(divide="ignore"):  # at rate 1 it takes log(0), as a limit
        assert found == pytest.approx(prv.get_epsilon(delta), abs=0.015)  # its own error: 0.01


@pytest.mark.parametrize(("schedule", "delta"), [SCHEDULES[k] for k in (0, 1, 4)])
def test_mu_covers_the_whole_curve_and_hardly_more(schedule: Schedule, delta: float) -> None:
    releases = releases_of(schedule)
    mu = mu_of(releases, delta)
    larger = delta * np.logspace(0, math.log10(0.1 / delta), 6)
    excess = [epsilon_at(mu, d) - epsilon_of(releases, d) for d in larger]
    assert min(excess) > -1e-6
    assert min(excess) < 2e-3 * max(epsilon_of(releases, delta), 0.01)
    # As if all batches had been whole ones would cover it, too.
    assert mu < 0.5 * math.sqrt(sum(n / s**2 for s, _, n in schedule))


def test_gaussian_delta_by_mpmath() -> None:
    import mpmath

    mpmath.mp.dps = 50
    for epsilon, mu in ((0.0, 0.01), (1.0, 0.3), (8.0, 1.8), (1e-4, 1e-5), (1e6, 1410.5)):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        exact = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)
        assert float(log_delta(epsilon, mu)) == pytest.approx(float(mpmath.log(exact)), rel=1e-8)


def test_many_kinds_become_few_that_cost_no_less() -> None:
    rng = np.random.default_rng(0)
    many = tuple(
        Release(Gaussian(float(s), float(q)), int(n))
        for s, q, n in zip(
            rng.uniform(3, 9, 3000),
            rng.uniform(0.01, 0.2, 3000),
            rng.integers(1, 4, 3000),
            strict=True,
        )
    )
    few = coarsened(many)
    assert len(few) <= APART and sum(r.steps for r in few) == sum(r.steps for r in many)
    assert coarsened(many[:APART]) == many[:APART]
    for one, _ in many:
        assert any(m.sigma <= one.sigma and m.rate >= one.rate for m, _ in few)
    # 17 of them, where both can be composed.
    exact = epsilon_by_cosines([(m.sigma, m.rate, n) for m, n in many[:17]], 1e-5, removed=True)
    assert exact <= epsilon_of(many[:17], 1e-5) <= 1.1 * exact
