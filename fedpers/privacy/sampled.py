"""The privacy of Gaussian noise on Poisson samples, by the distribution of the privacy loss.

One step's loss is put on a grid so that no (epsilon, delta) is understated ("connect the dots",
Doroshenko et al. 2022, arXiv 2207.04380) and steps are composed by convolution, both by Google's
``dp-accounting``. All is done twice, for an example that is there in the first data set alone, and
in the second alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedpers.privacy.gaussian import Floats, log_delta

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

TAIL = 9.5  # standard deviations of the noise; beyond is a probability of 1e-21
CELLS = 2**17  # of a grid, about: more would take too much time and memory
CLOSE = 1e-4  # what the grid may add to epsilon, relative; of a large epsilon no more than
CLOSE_AT_LARGE = 5e-4  # this, or
CLOSE_AT_HUGE = 1e-6  # relative again, this
KINDS = 16  # distinct (sigma, rate) of a history that are composed one by one


class Release(NamedTuple):
    """So many steps of DP-SGD at noise multiplier ``sigma`` and sampling rate ``rate``."""

    sigma: float
    rate: float
    steps: int


def composed(releases: tuple[Release, ...]) -> PrivacyLossDistribution:
    """The distribution of the privacy loss of all releases together, at least one, all of which
    have steps. Releases of rate 1 may be among them."""
    kinds = coarsened(releases, KINDS + 2)
    return _together(kinds, grid(kinds))


@lru_cache(maxsize=32)
def _together(releases: tuple[Release, ...], interval: float) -> PrivacyLossDistribution:
    *others, (sigma, rate, steps) = releases
    found = one_step(sigma, rate, interval).self_compose(steps)
    # A history grows at its end: what is before it has been composed.
    return _together(tuple(others), interval).compose(found) if others else found


@lru_cache(maxsize=64)
def one_step(sigma: float, rate: float, interval: float) -> PrivacyLossDistribution:
    """The loss of one step on the grid of the multiples of ``interval``."""
    from dp_accounting.pld.pld_pmf import (
        PLDPmf,
        create_pmf_pessimistic_connect_dots_fixed_gap,
    )
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    def on_grid(least: float, most: float, *, removed: bool) -> PLDPmf:
        low, high = math.floor(least / interval), math.ceil(most / interval)
        places = np.arange(low, high + 1, dtype=np.float64) * interval
        deltas = delta_of_step(places, sigma, rate, removed=removed)
        return create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)

    low, middle, high = loss(np.array([-TAIL, TAIL, TAIL + 1 / sigma]), sigma, rate)
    removed = on_grid(low, high, removed=True)
    if rate == 1:
        return PrivacyLossDistribution(removed)
    return PrivacyLossDistribution(removed, on_grid(-middle, -low, removed=False))


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


def grid(releases: Sequence[Release]) -> float:
    """The interval of a grid that adds little to epsilon, or of the finest that is affordable.

    On a grid of interval h the loss of each step has a mean larger by h^2 / 12 and a variance
    larger by twice that, on average. A power of 2, so that a growing history keeps its grid.
    """
    steps = sum(r.steps for r in releases)
    spread = math.sqrt(sum(r.steps * variance_of_step(r.sigma, r.rate) for r in releases))
    epsilon = 4 * spread + spread**2 / 2  # about
    may_add = min(CLOSE * epsilon, max(CLOSE_AT_LARGE, CLOSE_AT_HUGE * epsilon))
    wanted = math.sqrt(12 * may_add / (steps * (4 / spread + 1)))
    widest = max(float(np.ptp(loss(_ends(r.sigma), r.sigma, r.rate))) for r in releases)
    return float(2.0 ** math.floor(math.log2(max(wanted, 16 * spread / CELLS, widest / CELLS))))


def _ends(sigma: float) -> Floats:
    return np.array([-TAIL, TAIL + 1 / sigma])


@lru_cache(maxsize=4096)
def variance_of_step(sigma: float, rate: float) -> float:
    """Of the loss of one step, where the example is in the data."""
    z = np.linspace(-TAIL, TAIL, 2001)
    weight = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    without, with_it = loss(z, sigma, rate), loss(z + 1 / sigma, sigma, rate)
    mean = weight @ ((1 - rate) * without + rate * with_it)
    return float(weight @ ((1 - rate) * (without - mean) ** 2 + rate * (with_it - mean) ** 2))


@lru_cache(maxsize=1024)
def coarsened(releases: tuple[Release, ...], most: int = KINDS) -> tuple[Release, ...]:
    """At most so many kinds that cost no less: like ones as if all had the least noise and the
    highest rate among them, from which the others could be made by adding noise and by dropping
    examples."""
    kinds, ratio = releases, 1e-4
    while len(kinds) > most:
        groups: dict[tuple[int, int], list[Release]] = {}
        for release in releases:
            place = tuple(math.floor(math.log(x) / ratio) for x in (release.sigma, release.rate))
            groups.setdefault((place[0], place[1]), []).append(release)
        kinds = tuple(
            Release(min(r.sigma for r in g), max(r.rate for r in g), sum(r.steps for r in g))
            for g in groups.values()
        )
        ratio *= 2
    return kinds
