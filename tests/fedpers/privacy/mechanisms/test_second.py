"""A second mechanism, brought from outside: charged, composed with the first, calibrated, drawn.

By hand: a step of pure epsilon costs what randomised response does, k of them have the losses
(k - 2 l) epsilon, l binomial (Kairouz et al. 2015, arXiv 1311.0776, theorem 3.3), and beside a
Gaussian release delta is the mean over those of the Gaussian's, epsilon moved by the loss.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom, norm
from spherical import Spherical

from fedpers.errors import ClientError
from fedpers.privacy import (
    Budget,
    BudgetSpent,
    Gaussian,
    Ledger,
    Mechanism,
    Release,
    calibrated,
    epsilon_of,
    mu_of,
)
from fedpers.privacy.accounting import most_steps
from fedpers.privacy.gdp import epsilon_at
from fedpers.privacy.noise import known

DELTA = 1e-5


def pure(epsilon: float, rate: float = 1.0) -> Spherical:
    """A count, of one value: Laplace noise of scale 1 / epsilon, whose deviation is sqrt(2) times
    that."""
    return Spherical(math.sqrt(2) / epsilon, rate, scalars=1)


def by_hand(epsilon: float, steps: int, mu: float, delta: float) -> float:
    """Of steps of pure epsilon and Gaussian releases of mu together; of mu 0, of those alone."""
    kept = 1 / (1 + math.exp(-epsilon))

    def gaussian(at: float) -> float:
        if mu == 0:
            return max(0.0, 1 - math.exp(at))
        below = math.exp(at) * norm.cdf(-mu / 2 - at / mu)
        return float(norm.cdf(mu / 2 - at / mu) - below)

    def excess(at: float) -> float:
        losses = [(steps - 2 * against) * epsilon for against in range(steps + 1)]
        shares = binom.pmf(range(steps + 1), steps, 1 - kept)
        terms = [p * gaussian(at - x) for p, x in zip(shares, losses, strict=True)]
        return sum(terms) - delta

    most = steps * epsilon + epsilon_at(mu, delta / 2) + 1
    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, most, xtol=1e-12))


@pytest.mark.parametrize(
    ("epsilon", "steps", "delta"),
    [(1.0, 1, DELTA), (0.5, 2, 1e-3), (0.1, 40, DELTA), (0.01, 500, 1e-6), (2.0, 9, 1e-2)],
)
def test_steps_of_pure_epsilon_by_hand(epsilon: float, steps: int, delta: float) -> None:
    exact = by_hand(epsilon, steps, 0.0, delta)
    found = epsilon_of([Release(pure(epsilon), steps)], delta)
    assert exact - 1e-9 <= found <= exact * (1 + 1e-3) + 1e-3
    assert found <= steps * epsilon * (1 + 1e-9)


def test_one_step_is_closed_form() -> None:
    # delta = (e^e0 - e^epsilon) / (1 + e^e0)
    found = epsilon_of([Release(pure(1.0), 1)], 0.01)
    assert found == pytest.approx(math.log(math.e - 0.01 * (1 + math.e)), rel=1e-4)


@pytest.mark.parametrize("steps", [1, 3, 25])
@pytest.mark.parametrize("mu", [0.1, 1.0, 4.0])
def test_two_kinds_together_by_hand(steps: int, mu: float) -> None:
    releases = [Release(pure(0.2), steps), Release(Gaussian(2 / mu, 1.0), 4)]  # of mu together
    exact = by_hand(0.2, steps, mu, DELTA)
    for order in (releases, releases[::-1]):
        found = epsilon_of(order, DELTA)
        assert exact - 1e-9 <= found <= exact * (1 + 1e-3)
    # Basic composition is more, and either alone is less.
    assert found <= 0.2 * steps + epsilon_at(mu, DELTA)
    assert found > max(epsilon_of([release], DELTA) for release in releases)


def test_samples_of_two_kinds_lie_between_what_is_known_of_them() -> None:
    few, more = Release(pure(0.5, rate=0.1), 30), Release(Gaussian(1.0, 0.1), 30)
    # log(1 + .1 (e^.5 - 1)) = .0628 is what a step of the first costs.
    amplified = math.log1p(0.1 * math.expm1(0.5))
    alone = epsilon_of([few], DELTA)
    assert alone == pytest.approx(by_hand(amplified, 30, 0.0, DELTA), rel=1e-3)
    together = epsilon_of([few, more], DELTA)
    assert epsilon_of([more], DELTA) < together
    halves = epsilon_of([few], DELTA / 2) + epsilon_of([more], DELTA / 2)
    assert together < halves


def test_mu_covers_every_delta() -> None:
    # No mu is declared for it: it is looked for.
    releases = [Release(pure(0.3), 5), Release(Gaussian(3.0, 1.0), 2)]
    mu = mu_of(releases, DELTA)
    larger = DELTA * 10 ** (torch.arange(0, 4.4, 0.05).double())
    excess = [epsilon_at(mu, d) - epsilon_of(releases, d) for d in larger.tolist()]
    assert -1e-6 < min(excess) < 0.01
    assert mu_of([Release(pure(600.0), 1)], DELTA) == math.inf  # beyond floating point: no claim


def test_what_is_not_known_costs_all() -> None:
    # Below what convolutions can show, where nothing of Gaussian DP is known of it.
    assert epsilon_of([Release(pure(0.1), 1)], 1e-13) == math.inf


def test_many_of_another_kind_are_coarsened_among_themselves() -> None:
    many = [Release(pure(0.01 + k / 1e5), 1) for k in range(300)]
    many += [Release(Spherical(200.0 + k, 1.0, 2), 1) for k in range(30)]
    found = epsilon_of([*many, Release(Gaussian(2.0, 0.5), 3)], DELTA)
    each = sum(r.steps * math.sqrt(r.mechanism.scalars + 1) / r.mechanism.sigma for r in many)
    assert found <= each + epsilon_of([Release(Gaussian(2.0, 0.5), 3)], DELTA)
    least = [Release(pure(0.01), 300), Release(Spherical(230.0, 1.0, 2), 30)]
    assert found >= epsilon_of([*least, Release(Gaussian(2.0, 0.5), 3)], DELTA)


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("beside", [(), (Release(Gaussian(5.0, 1.0), 1),)])
def test_the_noise_that_keeps_to_a_budget(rate: float, beside: tuple[Release, ...]) -> None:
    found = calibrated(Spherical, 2.0, DELTA, rate, 20, beside)
    assert isinstance(found, Spherical) and found.rate == rate and found.scalars == 4096
    assert 2.0 * 0.998 < epsilon_of([Release(found, 20), *beside], DELTA) <= 2.0
    assert most_steps(2.0, DELTA, found, beside) in (20, 21)


def test_a_budget_covers_both_kinds(tmp_path: Path) -> None:
    count, steps = Release(pure(0.5), 1), Release(Gaussian(4.0, 1.0), 3)
    budget = Budget(Ledger(tmp_path / "a.json"), 1.0001 * by_hand(0.5, 1, 3**0.5 / 4, DELTA), DELTA)
    budget.charge([steps._replace(steps=2), count])
    budget.charge([steps._replace(steps=1)])
    assert Budget(Ledger(tmp_path / "a.json"), 9.0, DELTA).spent == budget.spent
    for more in (count, steps._replace(steps=1)):
        with pytest.raises(BudgetSpent):
            budget.charge([more])
    kinds: set[type[Mechanism]] = {type(r.mechanism) for r in Ledger(tmp_path / "a.json").releases}
    assert kinds == {Gaussian, Spherical}


@pytest.mark.parametrize("count", [1, 40])
def test_the_noise_has_its_deviation_in_each_value_and_lies_on_the_grid(count: int) -> None:
    mechanism, source = Spherical(3.0, 1.0, scalars=40), known(0)()
    drawn = torch.stack([mechanism.noised(torch.zeros(count), 0.5, source) for _ in range(20_000)])
    for values in drawn.T[:3]:  # of kurtosis 6 at most
        assert float(values.std()) == pytest.approx(1.5, rel=0.05)
        assert abs(float(values.mean())) < 5 * 1.5 / len(values) ** 0.5
    # A sum of `count` exponentials: its mean is `count` times their scale 1.5 / sqrt(count + 1).
    expected = 1.5 * count / (count + 1) ** 0.5
    assert float(drawn.norm(dim=1).mean()) == pytest.approx(expected, rel=0.03)
    grid = 2.0 ** (math.floor(math.log2(1.5)) - 16)
    assert torch.equal((drawn / grid).round() * grid, drawn)


def test_more_values_than_it_answers_for_are_refused() -> None:
    with pytest.raises(ClientError, match="got 5 values, takes at most 4"):
        Spherical(1.0, 1.0, scalars=4).noised(torch.zeros(5), 1.0, known(0)())
