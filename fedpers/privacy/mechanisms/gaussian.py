"""Gaussian noise on a Poisson sample, or on the whole batch (Abadi et al. 2016, arXiv 1607.00133).

At rate 1 a step is Gaussian DP with mu = 1 / sigma, and steps compose exactly. Below, its privacy
loss is that of a mixture of two Gaussians, for which there are two directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedpers.privacy.gdp import Floats, log_delta
from fedpers.privacy.mechanisms.base import MECHANISMS, Mechanism, Profile
from fedpers.privacy.noise import Source

WHOLE = 1 - 1e-9  # a rate from which on a sample is taken for the whole batch, which costs more
LEAST_NOISE = 1e-6  # below it is none
TAIL = 9.5  # standard deviations of the noise; beyond is a probability of 1e-21


@MECHANISMS.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Mechanism):
    """A sum plus N(0, (sigma * bound)^2) in each value."""

    divisible: ClassVar[bool] = True

    def noised(self, total: Tensor, bound: float, source: Source) -> Tensor:
        """The sum with the noise, rounded to a grid, see ``Source.noised``."""
        return source.noised(total, self.sigma * bound)

    def noised_share(self, total: Tensor, bound: float, source: Source, shares: int) -> Tensor:
        """The same with noise whose variance is one of so many shares."""
        return source.noised(total, self.sigma * bound / shares**0.5)

    def profiles(self) -> tuple[Profile, ...]:
        """One on whole batches, where both directions are alike."""
        ends = np.array([-TAIL, TAIL, TAIL + 1 / self.sigma])
        low, middle, high = loss(ends, self.sigma, self.rate)
        delta = partial(delta_of_step, sigma=self.sigma, rate=self.rate)
        removed = Profile(partial(delta, removed=True), low, high)
        if self.rate == 1:
            return (removed,)
        return removed, Profile(partial(delta, removed=False), -middle, -low)

    @property
    def exact(self) -> bool:
        """On whole batches, and where there is no noise to speak of."""
        return self.rate >= WHOLE or self.sigma < LEAST_NOISE

    def mu_squared(self, steps: int) -> float:
        """steps / sigma^2: as if all batches were whole ones."""
        return math.inf if self.sigma < LEAST_NOISE else steps / self.sigma**2

    @property
    def variance(self) -> float:
        """Of one step's loss, where the example is in the data."""
        return variance_of_step(self.sigma, self.rate)


def loss(z: Floats, sigma: float, rate: float) -> Floats:
    """log(1 - q + q e^((x - 1/2) / sigma^2)): the loss at x = sigma z for an example that moves
    the sum by 1."""
    exponent = (sigma * z - 0.5) / sigma**2
    if rate == 1:
        return exponent
    found: Floats = np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)
    return found


def delta_of_step(epsilon: Floats, sigma: float, rate: float, *, removed: bool) -> Floats:
    """The least delta of one step at each epsilon [n], any real numbers.

    Where the loss exceeds epsilon, that of the whole batch exceeds an ``inner`` epsilon, whose
    delta there, times the rate, is the sample's.

    Args:
        removed: the example is in the first data set; else in the second.
    """
    sign = 1.0 if removed else -1.0
    # The loss is nowhere below log(1 - q), for an example in the first, or above -log(1 - q).
    exceeded = np.full(epsilon.shape, True)
    if rate < 1:
        exceeded = sign * epsilon > math.log1p(-rate)
    found = -np.expm1(np.minimum(epsilon, 0)) if removed else np.zeros_like(epsilon)
    inner = sign * _inner(sign * epsilon[exceeded], rate)
    log_scale = math.log(rate) + (0.0 if removed else epsilon[exceeded] - inner)
    found[exceeded] = np.exp(np.minimum(log_scale + log_delta(inner, 1 / sigma), 0))
    return found


def _inner(epsilon: Floats, rate: float) -> Floats:
    """log((e^epsilon - 1 + q) / q), for epsilon > log(1 - q)."""
    with np.errstate(over="ignore"):
        small = np.log1p(np.maximum(np.expm1(epsilon) / rate, -1 + 2.0**-53))
        large = epsilon - math.log(rate) + np.log1p((rate - 1) * np.exp(-np.maximum(epsilon, 0)))
    return np.where(epsilon < 1, small, large)


@lru_cache(maxsize=4096)
def variance_of_step(sigma: float, rate: float) -> float:
    """Of the loss of one step, where the example is in the data."""
    z = np.linspace(-TAIL, TAIL, 2001)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    without, with_it = loss(z, sigma, rate), loss(z + 1 / sigma, sigma, rate)
    mean = weight @ ((1 - rate) * without + rate * with_it)
    return float(weight @ ((1 - rate) * (without - mean) ** 2 + rate * (with_it - mean) ** 2))
