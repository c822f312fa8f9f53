"""Composition of subsampled Gaussian releases, on Opacus' accountants.

The unit is one example, added to or removed from a client's data (sigma, q and the size of the
data set are public). Opacus does the mathematics: Renyi DP (Mironov et al. 2019, 1908.10530) for
calibration and look-ahead, PRV (Gopi et al. 2021, 2106.02848) for a tighter last figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST_NOISE = 1e6
PRECISION = 1e-3  # of the noise multiplier, relative
PRV_ENTRIES = 4  # PRV's cost grows fast with distinct entries


class Release(NamedTuple):
    """So many steps of DP-SGD at noise multiplier ``sigma`` and sampling rate ``rate``."""

    sigma: float
    rate: float
    steps: int


@lru_cache(maxsize=4096)
def _rdp_of_step(sigma: float, rate: float) -> NDArray[np.float64]:
    from opacus.accountants.analysis import rdp

    return np.atleast_1d(rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=_orders()))


@lru_cache(maxsize=1)
def _orders() -> tuple[float, ...]:
    from opacus.accountants import RDPAccountant

    return tuple(RDPAccountant.DEFAULT_ALPHAS)


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """The epsilon of all ``releases`` together, by Renyi DP; 0 for none.

    Args:
        delta: in (0, 1).
    """
    import warnings

    from opacus.accountants.analysis import rdp

    spent = [release for release in releases if release.steps > 0]
    if not spent:
        return 0.0
    total = sum(r.steps * _rdp_of_step(r.sigma, r.rate) for r in spent)
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound holds, it could be a little tighter.
        warnings.simplefilter("ignore")
        epsilon, _ = rdp.get_privacy_spent(orders=_orders(), rdp=total, delta=delta)
    return float(epsilon)


def tight_epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """As ``epsilon_of``, by PRV where that is cheap, whichever is smaller."""
    bound = epsilon_of(releases, delta)
    spent = [release for release in releases if release.steps > 0]
    if not spent or len(spent) > PRV_ENTRIES:
        return bound
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(r.sigma, r.rate, r.steps) for r in spent]
    try:
        with np.errstate(divide="ignore"):  # at rate 1 it takes log(0), as a limit
            return min(bound, float(accountant.get_epsilon(delta=delta)))
    except (ValueError, RuntimeError):  # its grid does not hold very large or small epsilons
        return bound


@lru_cache(maxsize=1024)
def noise_multiplier(
    epsilon: float, delta: float, rate: float, steps: int, beside: tuple[Release, ...] = ()
) -> float:
    """The smallest sigma (to 0.1%, from above) at which ``steps`` releases cost at most epsilon.

    Args:
        epsilon: > 0.
        delta: in (0, 1).
        rate: the sampling rate, in (0, 1].
        steps: >= 1.
        beside: other releases that the same epsilon has to cover.

    Raises:
        ValueError: no sigma up to a million is enough.
    """
    low, high = 0.0, 1.0
    while epsilon_of([*beside, Release(high, rate, steps)], delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST_NOISE:
            raise ValueError(f"epsilon: got {epsilon:g} for {steps} steps, takes more, or fewer")
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if epsilon_of([*beside, Release(middle, rate, steps)], delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


def default_delta(examples: int) -> float:
    """The largest power of ten below 1 / (2 n), at most 1e-3.

    A power of ten, so that clients of like size share one calibration.
    """
    delta = 1e-3
    while delta * 2 * max(examples, 1) >= 1:
        delta /= 10
    return delta
