"""The privacy of Gaussian noise, exactly (Balle and Wang 2018, arXiv 1805.06530).

A sum that one example changes by 1 at most, noised by N(0, sigma^2), is mu-Gaussian-DP with
mu = 1 / sigma, and several of them are with mu^2 = sum 1 / sigma^2 (Dong et al. 2019, arXiv
1905.02383). What is found is rounded so that it claims no more privacy than there is.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUNDING = 1e-9  # relative: more than what floating point may hide
BISECTIONS = 200


def log_delta(epsilon: Floats | float, mu: float) -> Floats:
    """log(Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)): the log of the least delta.

    Args:
        epsilon: any real numbers, [...].
        mu: > 0.
    """
    from scipy.special import log_ndtr

    ratio = np.asarray(epsilon, dtype=np.float64) / mu
    above = log_ndtr(mu / 2 - ratio)
    below = epsilon + log_ndtr(-mu / 2 - ratio)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where rounding leaves nothing, or less, of their difference, there is nothing to see.
        found: Floats = above + np.log(-np.expm1(np.minimum(below - above, 0)))
    return found


@lru_cache(maxsize=4096)
def epsilon_at(mu: float, delta: float) -> float:
    """The least epsilon at which mu-Gaussian-DP is (epsilon, delta)-DP, from above."""
    if mu == math.inf:
        return math.inf
    if mu == 0 or log_delta(0.0, mu) <= math.log(delta):
        return 0.0
    # Phi(-t) <= exp(-t^2 / 2), so that this is enough.
    low, high = 0.0, mu**2 / 2 + mu * math.sqrt(-2 * math.log(delta))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if log_delta(middle, mu) <= math.log(delta):
            high = middle
        else:
            low = middle
    return high * (1 + ROUNDING)


@lru_cache(maxsize=4096)
def mu_at(epsilon: float, delta: float) -> float:
    """The largest mu at which mu-Gaussian-DP is (epsilon, delta)-DP, from below.

    Args:
        epsilon: >= 0.
    """
    target = epsilon * (1 - 2 * ROUNDING)  # so that epsilon_at gives no more than epsilon
    low, high = 0.0, 1.0
    while log_delta(target, high) <= math.log(delta):
        low, high = high, 2 * high
    while high - low > ROUNDING * high:
        middle = (low + high) / 2
        if log_delta(target, middle) <= math.log(delta):
            low = middle
        else:
            high = middle
    return low
