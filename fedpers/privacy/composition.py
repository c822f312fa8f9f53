"""What steps of several mechanisms cost together, by the distribution of the privacy loss.

One step's loss is put on a grid so that no (epsilon, delta) is understated ("connect the dots",
Doroshenko et al. 2022, arXiv 2207.04380) and steps are composed by convolution, both by Google's
``dp-accounting``. That holds for mechanisms of any kinds, each chosen with what the others gave in
view (Zhu et al. 2022, arXiv 2106.08567, theorem 10). All is done twice, for an example that is
there in the first data set alone, and in the second alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedpers.privacy.mechanisms import Mechanism, Profile, Release

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

CELLS = 2**17  # of a grid, about: more would take too much time and memory
CLOSE = 1e-4  # what the grid may add to epsilon, relative; of a large epsilon no more than
CLOSE_AT_LARGE = 5e-4  # this, or
CLOSE_AT_HUGE = 1e-6  # relative again, this
APART = 16  # distinct mechanisms of a history that are composed one by one
FARTHEST = 1e4  # of a ratio: in it lie all sigmas and rates that there are


def composed(releases: tuple[Release, ...]) -> PrivacyLossDistribution:
    """The distribution of the privacy loss of all releases together, at least one, all of which
    have steps. Releases of rate 1 may be among them."""
    few = coarsened(releases, APART + 2)
    return _together(few, grid(few))


@lru_cache(maxsize=32)
def _together(releases: tuple[Release, ...], interval: float) -> PrivacyLossDistribution:
    *others, (mechanism, steps) = releases
    found = one_step(mechanism, interval).self_compose(steps)
    # A history grows at its end: what is before it has been composed.
    return _together(tuple(others), interval).compose(found) if others else found


@lru_cache(maxsize=64)
def one_step(mechanism: Mechanism, interval: float) -> PrivacyLossDistribution:
    """The loss of one step on the grid of the multiples of ``interval``."""
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    def on_grid(profile: Profile) -> PLDPmf:
        low, high = (
            math.floor(profile.least / interval),
            math.ceil(profile.most / interval),
        )
        deltas = profile.delta(np.arange(low, high + 1, dtype=np.float64) * interval)
        return create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)

    return PrivacyLossDistribution(*map(on_grid, mechanism.profiles()))


def grid(releases: Sequence[Release]) -> float:
    """The interval of a grid that adds little to epsilon, or of the finest that is affordable.

    On a grid of interval h the loss of each step has a mean larger by h^2 / 12 and a variance
    larger by twice that, on average. A power of 2, so that a growing history keeps its grid.
    """
    steps = sum(r.steps for r in releases)
    spread = math.sqrt(sum(r.steps * r.mechanism.variance for r in releases))
    epsilon = 4 * spread + spread**2 / 2  # about
    may_add = min(CLOSE * epsilon, max(CLOSE_AT_LARGE, CLOSE_AT_HUGE * epsilon))
    wanted = math.sqrt(12 * may_add / (steps * (4 / spread + 1)))
    widest = max(most - least for r in releases for _, least, most in r.mechanism.profiles())
    return float(2.0 ** math.floor(math.log2(max(wanted, 16 * spread / CELLS, widest / CELLS))))


@lru_cache(maxsize=1024)
def coarsened(releases: tuple[Release, ...], most: int = APART) -> tuple[Release, ...]:
    """At most so many distinct mechanisms of a kind that cost no less: like ones as if all had the
    least noise and the highest rate among them."""
    found, ratio = releases, 1e-4
    while len(found) > most and ratio < FARTHEST:
        groups: dict[Hashable, list[Release]] = {}
        for release in releases:
            alike = replace(release.mechanism, sigma=1.0, rate=1.0)
            known = (release.mechanism.sigma, release.mechanism.rate)
            places = (math.floor(math.log(x) / ratio) for x in known)
            groups.setdefault((alike, *places), []).append(release)
        found = tuple(_as_the_costliest(group) for group in groups.values())
        ratio *= 2
    return found


def _as_the_costliest(group: Sequence[Release]) -> Release:
    every = [release.mechanism for release in group]
    sigma, rate = min(m.sigma for m in every), max(m.rate for m in every)
    return Release(replace(every[0], sigma=sigma, rate=rate), sum(r.steps for r in group))
