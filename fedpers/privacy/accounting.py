"""What releases cost together: epsilon at a delta, mu, and the noise that keeps to a budget.

The unit is one example, whose contribution is there or is taken away: it moves the sum of a step's
clipped gradients by the clipping norm at most. Steps on whole batches are Gaussian releases, which
compose exactly; steps on Poisson samples are composed by their privacy loss (see ``gaussian`` and
``sampled``). All figures are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedpers.privacy.gaussian import ROUNDING, epsilon_at, log_delta, mu_at
from fedpers.privacy.sampled import Release, coarsened, composed, variance_of_step

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

LARGEST_NOISE = 1e6
LEAST_NOISE = 1e-6  # below it is none
PRECISION = 5e-4  # of the noise multiplier, relative
WHOLE = 1 - 1e-9  # a rate from which on a sample is taken for the whole batch, which costs more
LEAST_DELTA = 1e-12  # that convolutions in floating point can show
MOST_STEPS = 2**31
CURVE = 2048  # places at which the curve of (epsilon, delta) is compared with a Gaussian's,
HIGHEST = 500.0  # up to this epsilon; a larger one's e^epsilon is too much for floating point


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """The epsilon of all ``releases`` together; 0 for none.

    Args:
        delta: in (0, 1). Below 1e-12 samples are counted as whole batches.
    """
    mu_squared, sampled = _kinds(releases)
    return _epsilon(mu_squared, sampled, delta)


def mu_of(releases: Sequence[Release], delta: float) -> float:
    """The mu of Gaussian DP of all ``releases`` together; 0 for none.

    Of whole batches it is exact. Else it is the smallest for which mu-Gaussian-DP needs as much
    delta as the releases at every epsilon from 0 to theirs at ``delta``, found numerically and from
    above (Gomez et al. 2025, arXiv 2503.10945): it holds for this delta and all larger ones.
    """
    mu_squared, sampled = _kinds(releases)
    return _mu(mu_squared, sampled, delta)


@lru_cache(maxsize=2**14)
def noise_multiplier(
    epsilon: float, delta: float, rate: float, steps: int, beside: tuple[Release, ...] = ()
) -> float:
    """The smallest sigma (to 0.1 %, from above) at which ``steps`` releases cost at most epsilon.

    Args:
        epsilon: > 0.
        delta: in (0, 1).
        rate: the sampling rate, in (0, 1].
        steps: >= 1.
        beside: other releases that the same epsilon has to cover.

    Raises:
        ValueError: no sigma up to a million is enough.
    """
    mu_squared, sampled = _kinds(beside)
    if rate >= WHOLE and not sampled:
        left = mu_at(epsilon, delta) ** 2 - mu_squared
        sigma = math.sqrt(steps / left) * (1 + ROUNDING) if left > 0 else math.inf
    else:
        sigma = _searched_noise(epsilon, delta, rate, steps, _few(beside))
    if sigma > LARGEST_NOISE:
        raise ValueError(f"epsilon: got {epsilon:g} for {steps} steps, takes more, or fewer")
    return sigma


def _searched_noise(
    epsilon: float, delta: float, rate: float, steps: int, beside: tuple[Release, ...]
) -> float:
    from scipy.optimize import brentq

    def excess(log_sigma: float) -> float:
        return epsilon_of([*beside, Release(math.exp(log_sigma), rate, steps)], delta) - epsilon

    # A Gaussian release's loss has the variance mu^2, and many small losses are nearly normal.
    left = mu_at(epsilon, delta) ** 2 - _variance(beside)
    low, high = math.log(1e-4), math.log(LARGEST_NOISE)
    while high - low > 0.1:
        middle = (low + high) / 2
        if steps * variance_of_step(math.exp(middle), rate) > left:
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
    epsilon: float, delta: float, sigma: float, rate: float, beside: tuple[Release, ...] = ()
) -> int:
    """How many steps at (sigma, rate) cost at most epsilon together with those beside.

    Found once for a history that grows by steps of one kind. At least -1, where those beside cost
    more by themselves, and at most 2^31.
    """
    others = _few(beside)

    def excess(steps: float) -> float:
        return epsilon_of([*others, Release(sigma, rate, int(steps))], delta) - epsilon

    if excess(0) > 0:
        return -1
    left = max(mu_at(epsilon, delta) ** 2 - _variance(others), 0.0)
    about = min(left / variance_of_step(sigma, rate), MOST_STEPS)
    low, high = 0.0, 1.05 * about + 1
    while excess(high) <= 0:
        if high > MOST_STEPS:
            return MOST_STEPS
        low, high = high, 2 * high
    steps = int(about)
    if rate < WHOLE or any(r.rate < WHOLE for r in others):
        from scipy.optimize import brentq

        steps = int(brentq(excess, low, high, xtol=0.5))
    while excess(steps) > 0:
        steps -= 1
    while excess(steps + 1) <= 0:
        steps += 1
    return steps


def _kinds(releases: Sequence[Release]) -> tuple[float, tuple[Release, ...]]:
    """Whole batches' mu^2, and what was sampled, equal entries collapsed, in their order."""
    mu_squared, sampled = 0.0, dict[tuple[float, float], int]()
    for sigma, rate, steps in releases:
        if steps > 0 and rate > 0 and sigma < math.inf:
            if sigma < LEAST_NOISE:
                mu_squared = math.inf
            elif rate >= WHOLE:
                mu_squared += steps / sigma**2
            else:
                sampled[sigma, rate] = sampled.get((sigma, rate), 0) + steps
    return mu_squared, tuple(Release(*kind, steps) for kind, steps in sampled.items())


def _few(releases: Sequence[Release]) -> tuple[Release, ...]:
    """Releases that cost no less, and are few."""
    mu_squared, sampled = _kinds(releases)
    return (*_gaussian(mu_squared), *coarsened(sampled))


def _gaussian(mu_squared: float) -> tuple[Release, ...]:
    return (Release(mu_squared**-0.5, 1.0, 1),) if mu_squared > 0 else ()


def _variance(releases: Sequence[Release]) -> float:
    return sum(r.steps * variance_of_step(r.sigma, r.rate) for r in releases)


def _as_whole(mu_squared: float, sampled: tuple[Release, ...]) -> float:
    """mu, if all batches had been whole ones."""
    return math.sqrt(mu_squared + sum(r.steps / r.sigma**2 for r in sampled))


def _composed(mu_squared: float, sampled: tuple[Release, ...]) -> PrivacyLossDistribution:
    # A history grows in its last kind, or in whole batches: what is before them is composed once.
    return composed((*sampled[:-1], *_gaussian(mu_squared), sampled[-1]))


@lru_cache(maxsize=2**14)
def _epsilon(mu_squared: float, sampled: tuple[Release, ...], delta: float) -> float:
    at_most = epsilon_at(_as_whole(mu_squared, sampled), delta)
    if not sampled or delta < LEAST_DELTA or at_most == math.inf:
        return at_most
    return min(at_most, float(_composed(mu_squared, sampled).get_epsilon_for_delta(delta)))


@lru_cache(maxsize=2**14)
def _mu(mu_squared: float, sampled: tuple[Release, ...], delta: float) -> float:
    low, high = 0.0, _as_whole(mu_squared, sampled)
    epsilon = _epsilon(mu_squared, sampled, delta)
    if not sampled or delta < LEAST_DELTA or epsilon > HIGHEST:
        return high
    epsilons = np.linspace(0, epsilon, CURVE)
    deltas = np.asarray(_composed(mu_squared, sampled).get_delta_for_epsilon(epsilons))
    # Between two places delta is at most that of the first, and a Gaussian's least at the second.
    needed = np.log(np.maximum(deltas[:-1], 1e-300))
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if np.all(log_delta(epsilons[1:], middle) >= needed):
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
