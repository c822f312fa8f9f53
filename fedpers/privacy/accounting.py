"""What releases cost together: epsilon at a delta, mu, and the noise that keeps to a budget.

The unit is one example, whose contribution is there or is taken away: it moves the sum of a step's
clipped gradients by the clipping norm at most. Exact Gaussian releases are composed by their mu
(see ``gdp``), all others, of whatever mechanisms, by their privacy loss (see ``composition``). All
figures are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedpers.privacy.composition import coarsened, composed
from fedpers.privacy.gdp import ROUNDING, epsilon_at, log_delta, mu_at
from fedpers.privacy.mechanisms import Gaussian, Mechanism, Release

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

LARGEST_NOISE = 1e6
PRECISION = 5e-4  # of the noise multiplier, relative
LEAST_DELTA = 1e-12  # that convolutions in floating point can show
MOST_STEPS = 2**31
CURVE = 2048  # places at which the curve of (epsilon, delta) is compared with a Gaussian's,
HIGHEST = 500.0  # up to this epsilon; a larger one's e^epsilon is too much for floating point


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """The epsilon of all ``releases`` together; 0 for none.

    Args:
        delta: in (0, 1). Below 1e-12 all is counted as the Gaussian DP that it keeps to, samples
            as whole batches.
    """
    return _epsilon(*_sorted(releases), delta)


def mu_of(releases: Sequence[Release], delta: float) -> float:
    """The mu of Gaussian DP of all ``releases`` together; 0 for none.

    Of exact Gaussian releases it is exact. Else it is the smallest for which mu-Gaussian-DP needs
    as much delta as the releases at every epsilon from 0 to theirs at ``delta``, found numerically
    and from above (Gomez et al. 2025, arXiv 2503.10945): it holds for this delta and all larger
    ones.
    """
    return _mu(*_sorted(releases), delta)


@lru_cache(maxsize=2**14)
def calibrated(
    kind: type[Mechanism],
    epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    beside: tuple[Release, ...] = (),
) -> Mechanism:
    """The mechanism of the smallest sigma (to 0.1 %, from above) at which so many steps cost at
    most epsilon.

    Args:
        epsilon: > 0.
        delta: in (0, 1).
        rate: the sampling rate, in (0, 1].
        steps: >= 1.
        beside: other releases that the same epsilon has to cover.

    Raises:
        ValueError: no sigma up to a million is enough.
    """
    mu_squared, others = _sorted(beside)
    unit = kind(1.0, rate)
    if unit.exact and not others:
        left = mu_at(epsilon, delta) ** 2 - mu_squared
        sigma = math.sqrt(unit.mu_squared(steps) / left) * (1 + ROUNDING) if left > 0 else math.inf
    else:
        sigma = _searched_noise(kind, epsilon, delta, rate, steps, _few(beside))
    if sigma > LARGEST_NOISE:
        raise ValueError(f"epsilon: got {epsilon:g} for {steps} steps, takes more, or fewer")
    return kind(sigma, rate)


def _searched_noise(
    kind: type[Mechanism],
    epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    beside: tuple[Release, ...],
) -> float:
    from scipy.optimize import brentq

    def excess(log_sigma: float) -> float:
        release = Release(kind(math.exp(log_sigma), rate), steps)
        return epsilon_of([*beside, release], delta) - epsilon

    # A Gaussian release's loss has the variance mu^2, and many small losses are nearly normal.
    left = mu_at(epsilon, delta) ** 2 - _variance(beside)
    low, high = math.log(1e-4), math.log(LARGEST_NOISE)
    while high - low > 0.1:
        middle = (low + high) / 2
        if steps * kind(math.exp(middle), rate).variance > left:
            low = middle
        else:
            high = middle
    while excess(high) > 0:
        if high > math.log(LARGEST_NOISE):
            return math.inf
        low, high = high, high + 0.5
    while excess(low) <= 0:
        low, high = low - 0.5, low
    log_sigma = brentq(excess, low, high, xtol=PRECISION / 4)
    while excess(log_sigma) > 0:
        log_sigma += PRECISION / 2
    return math.exp(log_sigma)


@lru_cache(maxsize=2**14)
def most_steps(
    epsilon: float, delta: float, mechanism: Mechanism, beside: tuple[Release, ...] = ()
) -> int:
    """How many steps of a mechanism cost at most epsilon together with those beside.

    Found once for a history that grows by steps of one mechanism. At least -1, where those beside
    cost more by themselves, and at most 2^31.
    """
    others = _few(beside)

    def excess(steps: float) -> float:
        return epsilon_of([*others, Release(mechanism, int(steps))], delta) - epsilon

    if excess(0) > 0:
        return -1
    left = max(mu_at(epsilon, delta) ** 2 - _variance(others), 0.0)
    about = min(left / mechanism.variance, MOST_STEPS)
    low, high = 0.0, 1.05 * about + 1
    while excess(high) <= 0:
        if high > MOST_STEPS:
            return MOST_STEPS
        low, high = high, 2 * high
    steps = int(about)
    if not all(m.exact for m in (mechanism, *(r.mechanism for r in others))):
        from scipy.optimize import brentq

        steps = int(brentq(excess, low, high, xtol=0.5))
    while excess(steps) > 0:
        steps -= 1
    while excess(steps + 1) <= 0:
        steps += 1
    return steps


def _sorted(releases: Sequence[Release]) -> tuple[float, tuple[Release, ...]]:
    """The mu^2 of exact Gaussian releases, and all others, equal ones collapsed, in their order."""
    mu_squared, others = 0.0, dict[Mechanism, int]()
    for mechanism, steps in releases:
        if steps > 0 and mechanism.rate > 0 and mechanism.sigma < math.inf:
            if mechanism.exact:
                mu_squared += mechanism.mu_squared(steps)
            else:
                others[mechanism] = others.get(mechanism, 0) + steps
    return mu_squared, tuple(Release(*other) for other in others.items())


def _few(releases: Sequence[Release]) -> tuple[Release, ...]:
    """Releases that cost no less, and are few."""
    mu_squared, others = _sorted(releases)
    return (*_gaussian(mu_squared), *coarsened(others))


def _gaussian(mu_squared: float) -> tuple[Release, ...]:
    return (Release(Gaussian(mu_squared**-0.5, 1.0), 1),) if mu_squared > 0 else ()


def _variance(releases: Sequence[Release]) -> float:
    return sum(r.steps * r.mechanism.variance for r in releases)


def _all_gaussian(mu_squared: float, others: tuple[Release, ...]) -> float:
    """The mu of the Gaussian DP that all together keep to; infinite where none is known."""
    return math.sqrt(mu_squared + sum(m.mu_squared(steps) for m, steps in others))


def _composed(mu_squared: float, others: tuple[Release, ...]) -> PrivacyLossDistribution:
    # A history grows in its last mechanism, or in exact releases: what is before is composed once.
    return composed((*others[:-1], *_gaussian(mu_squared), others[-1]))


@lru_cache(maxsize=2**14)
def _epsilon(mu_squared: float, others: tuple[Release, ...], delta: float) -> float:
    at_most = epsilon_at(_all_gaussian(mu_squared, others), delta)
    if not others or delta < LEAST_DELTA or mu_squared == math.inf:
        return at_most
    return min(at_most, float(_composed(mu_squared, others).get_epsilon_for_delta(delta)))


@lru_cache(maxsize=2**14)
def _mu(mu_squared: float, others: tuple[Release, ...], delta: float) -> float:
    at_most = _all_gaussian(mu_squared, others)
    epsilon = _epsilon(mu_squared, others, delta)
    if not others or delta < LEAST_DELTA or epsilon > HIGHEST:
        return at_most
    epsilons = np.linspace(0, epsilon, CURVE)
    deltas = np.asarray(_composed(mu_squared, others).get_delta_for_epsilon(epsilons))
    # Between two places delta is at most that of the first, and a Gaussian's least at the second.
    needed = np.log(np.maximum(deltas[:-1], 1e-300))

    def covers(mu: float) -> bool:
        return bool(np.all(log_delta(epsilons[1:], mu) >= needed))

    low, high = 0.0, at_most
    if high == math.inf:
        high = 1.0
        while not covers(high):
            low, high = high, 2 * high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if covers(middle):
            high = middle
        else:
            low = middle
    return high


def rounded_up(value: float, digits: int = 2) -> str:
    """A figure of what was spent, for print: with so many decimals, and no less than it is."""
    if not math.isfinite(value):
        return str(value)
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_CEILING))


def default_delta(examples: int) -> float:
    """The largest power of ten below 1 / (2 n), at most 1e-3.

    A power of ten, so that clients of like size share one calibration.
    """
    delta = 1e-3
    while delta * 2 * max(examples, 1) >= 1:
        delta /= 10
    return delta
