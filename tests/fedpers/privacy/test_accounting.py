"""Calibration, the look-ahead, what one Gaussian release costs, and the edges."""

from __future__ import annotations

import math
import random
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from fedpers.privacy import Gaussian, Ledger, Release, calibrated, epsilon_of, mu_of
from fedpers.privacy.accounting import (
    LARGEST_NOISE,
    MOST_STEPS,
    default_delta,
    most_steps,
    rounded_up,
)

DELTA = 1e-5
KINDS = ((1.1, 0.08), (0.9, 0.25))  # (sigma, q)


def test_the_history_of_a_ledger_adds_up_whenever_it_is_opened(tmp_path: Path) -> None:
    rng, ledger, steps = random.Random(5), Ledger(tmp_path / "ledger.json"), dict.fromkeys(KINDS, 0)
    for _ in range(60):
        kind, count = rng.choice(KINDS), rng.choice((1, 3))
        steps[kind] += count
        if rng.random() < 0.3:
            ledger = Ledger(ledger.path)
        ledger.charge([Release(Gaussian(*kind), count)])
    at_once = epsilon_of([Release(Gaussian(*kind), count) for kind, count in steps.items()], DELTA)
    assert len(ledger.releases) == 2 and at_once > 1
    assert ledger.epsilon(DELTA) == pytest.approx(at_once, rel=1e-4)  # another order, no more


def test_rounds_add_up_where_a_new_accountant_each_round_forgets() -> None:
    # q = 32/400, sigma = 1, an epoch of 12 steps a round, 100 rounds.
    one, all_rounds = Release(Gaussian(1.0, 0.08), 12), Release(Gaussian(1.0, 0.08), 1200)
    assert epsilon_of([one] * 100, DELTA) == epsilon_of([all_rounds], DELTA)
    assert epsilon_of([all_rounds], DELTA) > 5 * epsilon_of([one], DELTA)


def test_nothing_released_costs_nothing() -> None:
    none = [Release(Gaussian(math.inf, rate), 5) for rate in (1.0, 0.5)]
    nothing = [Release(Gaussian(1.0, 0.1), 0), *none]
    assert epsilon_of([], DELTA) == mu_of([], DELTA) == 0
    assert epsilon_of(nothing, DELTA) == mu_of(nothing, DELTA) == 0


def test_without_noise_nothing_is_private() -> None:
    for rate in (1.0, 0.1):
        assert epsilon_of([Release(Gaussian(0.0, rate), 1)], DELTA) == math.inf


def test_one_full_gaussian_release_by_hand() -> None:
    # delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu), mu = 1/2.
    def phi(x: float) -> float:
        return math.erfc(-x / 2**0.5) / 2

    epsilon = epsilon_of([Release(Gaussian(2.0, 1.0), 1)], DELTA)
    assert phi(0.25 - 2 * epsilon) - math.exp(epsilon) * phi(-0.25 - 2 * epsilon) == pytest.approx(
        DELTA, rel=1e-6
    )
    # Four times the noise in each of 16 releases is one release.
    assert epsilon_of([Release(Gaussian(8.0, 1.0), 16)], DELTA) == pytest.approx(epsilon, rel=1e-12)
    mixed = [Release(Gaussian(8.0, 1.0), 4), Release(Gaussian(4.0, 1.0), 3)]
    assert epsilon_of(mixed, DELTA) == pytest.approx(epsilon, rel=1e-12)
    assert mu_of(mixed, DELTA) == 0.5


def test_a_rate_of_one_up_to_rounding_is_one() -> None:
    whole = epsilon_of([Release(Gaussian(3.0, 1.0), 30)], DELTA)
    for rate in (1 - 1e-16, 1 - 1e-12, 1 + 1e-15):
        assert epsilon_of([Release(Gaussian(3.0, rate), 30)], DELTA) == whole
    # Continuous there.
    nearly = [Release(Gaussian(3.0, 1 - 1e-6), 30)]
    assert epsilon_of(nearly, DELTA) == pytest.approx(whole, rel=1e-3)


# -- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "sigma"), [(0.5, 26.358), (1.0, 14.247), (2.0, 7.756), (8.0, 2.429)]
)
def test_on_whole_batches_sigma_is_the_exact_one(epsilon: float, sigma: float) -> None:
    assert calibrated(Gaussian, epsilon, 1e-4, 1.0, 20).sigma == pytest.approx(sigma, abs=6e-4)


@pytest.mark.parametrize("share", [0, 0.25])
@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [
        *((epsilon, 1e-4, 0.1, steps) for epsilon in (0.5, 8.0) for steps in (20, 200, 2000)),
        *((0.5, 1e-4, 1.0, 20), (2.0, 1e-3, 0.1, 100), (8.0, 1e-5, 0.2, 7), (40.0, 1e-5, 1.0, 1)),
        *((0.01, 1e-5, 0.05, 50), (300.0, 1e-5, 0.3, 5)),
    ],
)
def test_sigma_is_the_smallest_that_keeps_to_epsilon(
    epsilon: float, delta: float, rate: float, steps: int, share: float
) -> None:
    beside: tuple[Release, ...] = ()
    if share:  # as counts take it that are released, too
        beside = (Release(calibrated(Gaussian, share * epsilon, delta, 1.0, 1), 1),)
    sigma = calibrated(Gaussian, epsilon, delta, rate, steps, beside).sigma
    assert epsilon_of([*beside, Release(Gaussian(sigma, rate), steps)], delta) <= epsilon
    assert epsilon_of([*beside, Release(Gaussian(0.999 * sigma, rate), steps)], delta) > epsilon
    if beside:
        assert sigma > calibrated(Gaussian, epsilon, delta, rate, steps).sigma


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_an_epsilon_that_what_stands_beside_has_used_up_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"^epsilon: got 0\.5 for 3 steps, takes more, or fewer$"):
        calibrated(Gaussian, 0.5, DELTA, rate, 3, (Release(Gaussian(1.0, 1.0), 1),))
    with pytest.raises(ValueError, match=r"^epsilon: got 1e-06 for 3 steps"):
        calibrated(Gaussian, 1e-6, 1e-9, 1.0, 3)  # beyond the largest noise


def test_shares_of_a_budget_add_up_exactly() -> None:
    # As an account plans two counts beside its phases: mu^2 is what adds up.
    whole = calibrated(Gaussian, 1.0, DELTA, 1.0, 1).sigma
    counts = (Release(Gaussian(whole / 0.3, 1.0), 1), Release(Gaussian(whole / 0.125, 1.0), 1))
    sigma = calibrated(Gaussian, 1.0, DELTA, 1.0, 20, counts).sigma
    alone = calibrated(Gaussian, 1.0, DELTA, 1.0, 20).sigma
    assert sigma == pytest.approx(alone / (1 - 0.3**2 - 0.125**2) ** 0.5, rel=1e-6)


# -- the look-ahead ------------------------------------------------------------------------------


BESIDE = [(), (Release(Gaussian(9.0, 1.0), 2),), (Release(Gaussian(4.0, 0.3), 5),)]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize(("sigma", "rate"), [(2.0, 0.1), (15.0, 1.0)])
def test_as_many_steps_are_affordable_as_cost_no_more(
    sigma: float, rate: float, beside: tuple[Release, ...]
) -> None:
    for epsilon in (0.9, 2.0):
        steps = most_steps(epsilon, DELTA, Gaussian(sigma, rate), beside)
        assert steps > 0
        assert epsilon_of([*beside, Release(Gaussian(sigma, rate), steps)], DELTA) <= epsilon
        assert epsilon_of([*beside, Release(Gaussian(sigma, rate), steps + 1)], DELTA) > epsilon


def test_all_steps_that_were_planned_are_affordable() -> None:
    for rate, steps in ((1.0, 20), (0.1, 20), (0.1, 333)):
        sigma = calibrated(Gaussian, 2.0, DELTA, rate, steps).sigma
        assert steps <= most_steps(2.0, DELTA, Gaussian(sigma, rate)) <= 1 + 1.002 * steps


def test_affordable_steps_at_the_edges() -> None:
    assert most_steps(1.0, DELTA, Gaussian(2.0, 0.1), (Release(Gaussian(0.5, 1.0), 1),)) == -1
    for much in (Gaussian(0.5, 1.0), Gaussian(0.3, 0.5)):
        assert most_steps(1.0, DELTA, much) == 0
    assert most_steps(1.0, DELTA, Gaussian(LARGEST_NOISE, 1.0)) == MOST_STEPS


# -- the edges of time and memory ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [
        ([(0.01, 0.1, 20)], 1e-5),
        ([(0.001, 0.5, 1)], 1e-5),
        ([(0.01, 0.1, 1), (5.0, 0.1, 1000)], 1e-5),
        ([(1e6, 0.1, 1000)], 1e-6),
        ([(1e6, 1e-6, 1)], 1e-12),
        ([(1.0, 0.001, 100_000)], 1e-6),
        ([(1.0, 0.5, 1_000_000)], 1e-5),
        ([(10.0, 0.1, 1000)], 1e-12),
        ([(2.0 + k / 1000, 0.1, 1) for k in range(3000)], 1e-5),
    ],
)
def test_odd_histories_take_neither_long_nor_much_memory(
    schedule: list[tuple[float, float, int]], delta: float
) -> None:
    releases, started = [Release(Gaussian(s, q), n) for s, q, n in schedule], time.process_time()
    epsilon, mu = epsilon_of(releases, delta), mu_of(releases, delta)
    assert time.process_time() - started < 20
    assert 0 <= mu <= 1.0001 * math.sqrt(sum(n / s**2 for s, _, n in schedule))
    if len(schedule) > 30:
        schedule = [(schedule[0][0], schedule[0][1], len(schedule))]
    assert 0 <= epsilon <= 1.001 * by_renyi(schedule, delta)


@pytest.mark.parametrize("epsilon", [1e6, 1e-3])
def test_a_huge_and_a_tiny_epsilon_are_met(epsilon: float) -> None:
    for rate in (1.0, 0.1):
        sigma = calibrated(Gaussian, epsilon, 1e-4, rate, 20).sigma
        assert 0 < sigma < LARGEST_NOISE
        spent = epsilon_of([Release(Gaussian(sigma, rate), 20)], 1e-4)
        assert 0.998 * epsilon < spent <= epsilon


def test_below_what_can_be_convolved_samples_count_as_whole_batches() -> None:
    sampled, whole = Release(Gaussian(10.0, 0.1), 1000), Release(Gaussian(10.0, 1.0), 1000)
    assert epsilon_of([sampled], 1e-15) == epsilon_of([whole], 1e-15)
    assert epsilon_of([sampled], 1e-12) < 0.1 * epsilon_of([whole], 1e-12)


def by_renyi(schedule: list[tuple[float, float, int]], delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = list(schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a higher or lower order would be tighter
        return float(accountant.get_epsilon(delta))


@settings(max_examples=settings().max_examples // 3)
@given(
    st.floats(0.3, 50), st.floats(0.01, 0.99), st.integers(1, 300), st.sampled_from((1e-4, 1e-8))
)
def test_no_more_is_claimed_than_by_renyi_dp_nor_less_than_without_sampling(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    epsilon = epsilon_of([Release(Gaussian(sigma, rate), steps)], delta)
    assert epsilon <= epsilon_of([Release(Gaussian(sigma, 1.0), steps)], delta)
    assert epsilon <= 1.001 * by_renyi([(sigma, rate, steps)], delta)


# -- figures -------------------------------------------------------------------------------------


def test_figures_are_rounded_up() -> None:
    assert [rounded_up(x) for x in (7.991, 7.75, 8.0, 0.0, 1e-9)] == [
        *("8.00", "7.75", "8.00", "0.00", "0.01")
    ]
    assert rounded_up(0.12345, 3) == "0.124" and rounded_up(math.inf) == "inf"
    assert rounded_up(1e6) == "1000000.00"


def test_the_default_delta_is_below_one_over_n() -> None:
    for n in (*range(1, 3000), 10**4, 5 * 10**5, 10**7):
        delta = default_delta(n)
        assert 0 < delta * n < 0.5
        assert delta <= 1e-3
        assert delta > 9e-4 or delta * 10 * 2 * n >= 1 - 1e-9  # no smaller than it has to be
    assert default_delta(0) == 1e-3
