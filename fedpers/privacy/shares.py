"""Noise that clients add in shares: how a change becomes integers, and what their noised sum costs.

A client's change v, |v| <= C, becomes integers z in steps of C / K, rounded at random until
|z|^2 <= B^2 (conditional rounding: Kairouz, Liu and Steinke 2021, arXiv 2102.06387, section 4), so
that B, not C, is what one client moves the sum by. To z it adds N_Z(V) in each value, and the sum
is taken modulo 2^b, which is nothing but what is done to a release.

The sum costs what a Gaussian release of noise multiplier sigma does, exactly, and is charged so.
Why, of what h honest clients add, where h V >= sigma^2 B^2 + b^2 and e(s) = 2 e^(-2 pi^2 s^2):

1. The sum of h shares N_Z(V) has the probabilities of N_Z(h V) up to a factor of 1 +- e(s), for
   each share that is added, with s^2 = V / 2 or more (Poisson's summation of a Gaussian over the
   integers; ibid., section 3.1).
2. x + N_Z(a^2 + b^2), x an integer, has the probabilities, up to 1 +- e(b), of this: draw
   y = x + N(0, a^2), then k about y with a probability in proportion to e^(-(k - y)^2 / 2 b^2)
   (Peikert 2010, IACR 2010/088, theorem 3.1). So it is made of a Gaussian release of x, and tells
   no more, at any epsilon, in any number of values, composed with whatever else.

With b = 3 and V >= 16 both factors are below 1 + 1e-68: at 10^9 values, 10^4 shares and 10^4 rounds
epsilon grows by less than 1e-50, and delta by what ``discrete`` cuts off, 1e-25; the account's own
rounding up is larger. That is why these are discrete Gaussians, and not Skellam's (Agarwal et al.
2021, arXiv 2110.04995), whose sums are exact but whose known account, by Renyi divergence, charges
more at the same variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedpers.errors import ClientError, ConfigError
from fedpers.privacy.discrete import LEAST_VARIANCE, MOST_VARIANCE, Integers, discrete_gaussian
from fedpers.privacy.noise import Source

SMOOTHING = 9  # b^2
GROWTH = 1.01  # B / K at most
DRAWS = 64  # of rounding, each of which is short enough with a probability above 0.39
WRAPS = 10  # standard deviations of the noise that a sum has room for: 2e-23 a value lie beyond
BITS = "encryption.masks.bits"


@dataclass(frozen=True)
class Shares:
    """The noise of one sum.

    Args:
        size: d, values of the whole change, >= 1.
        norm: C, > 0.
        bits: of a value in -C..C, 2 to 32: K is 2^(bits - 1) - 1.
        sigma: noise multiplier of the whole noise, > 0.
        honest: h, clients whose shares make up the whole; what others add comes on top.

    Raises:
        ConfigError: so few bits that rounding would add over 1 % to C, or that noise is no longer
            smooth on the grid; or numbers that no account has.
    """

    size: int
    norm: float
    bits: int
    sigma: float
    honest: int

    def __post_init__(self) -> None:
        possible = 2 <= self.bits <= 32 and min(self.size, self.honest) >= 1
        if not (possible and math.isfinite(self.norm) and self.norm > 0 < self.sigma < math.inf):
            raise ConfigError("noise", self, "numbers that an account has")
        for bits in range(self.bits, 33):
            if self._fine(bits):
                break
        else:
            takes = "a noise multiplier that a grid of 2^32 steps shows"
            raise ConfigError("privacy.epsilon", f"noise of {self.sigma:.3g}", takes, "lower it")
        if bits > self.bits:
            why = "so that rounding adds 1 % at most to the clipping norm, and noise hides the grid"
            raise ConfigError(BITS, self.bits, f"{bits} or more for {self.size} values, {why}")
        if self.variance > MOST_VARIANCE:
            raise ConfigError(BITS, self.bits, "fewer, with so much noise")

    def _fine(self, bits: int) -> bool:
        steps = _steps(bits)
        bound = _bound(steps, self.size)
        whole = Fraction(self.sigma) ** 2 * bound + SMOOTHING
        return bound <= (GROWTH * steps) ** 2 and whole >= LEAST_VARIANCE * self.honest

    @property
    def steps(self) -> int:
        """K, steps of the clipping norm."""
        return _steps(self.bits)

    @property
    def bound(self) -> int:
        """B^2, which |z|^2 does not exceed."""
        return _bound(self.steps, self.size)

    @cached_property
    def variance(self) -> int:
        """V, of one share, rounded up."""
        whole = Fraction(self.sigma) ** 2 * self.bound + SMOOTHING
        return math.ceil(whole / self.honest)

    def reach(self, clients: int) -> int:
        """What no value of a sum of so many clients exceeds, but with a probability of 2e-23."""
        noise = WRAPS * math.sqrt(clients * self.variance)
        return clients * math.isqrt(self.bound) + math.ceil(noise)

    def noised(self, change: npt.NDArray[np.float64], source: Source) -> Integers:
        """What one client adds to the sum, int64 [size].

        Args:
            change: [size]; scaled to C where it is longer.

        Raises:
            ClientError: it is not finite, or of another size.
        """
        return self.rounded(change, source) + discrete_gaussian(self.variance, self.size, source)

    def rounded(self, change: npt.NDArray[np.float64], source: Source) -> Integers:
        """z, which is as long as B at most, whatever is drawn: after many draws that are too long,
        which happens once in 10^13, it is rounded towards 0.

        Raises:
            ClientError: the change is not finite, or of another size.
        """
        if change.shape != (self.size,):
            raise ClientError(f"change: got shape {change.shape}, takes ({self.size},)")
        if not np.isfinite(change).all():
            raise ClientError("change: got what is not finite; the training has diverged")
        scale = self.steps / max(self.norm, float(np.linalg.norm(change)))
        exact = change * scale
        for _ in range(DRAWS):
            found: Integers = np.floor(exact + source.uniform(self.size).numpy()).astype(np.int64)
            if self.allows(found):
                return found
        found = np.trunc(exact).astype(np.int64)
        if not self.allows(found):
            raise ClientError("change: got one that no rounding makes short enough")
        return found

    def allows(self, integers: Integers) -> bool:
        """Whether |z|^2 <= B^2, in integers."""
        if np.linalg.norm(integers.astype(np.float64)) > 1.3 * math.sqrt(self.bound):
            return False  # below, the sum of squares does not overflow
        return int(np.dot(integers, integers)) <= self.bound

    def changes(self, sums: Integers) -> npt.NDArray[np.float64]:
        """What a sum of integers is in units of the parts."""
        return sums.astype(np.float64) * (self.norm / self.steps)


def _steps(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _bound(steps: int, size: int) -> int:
    """K^2 + d/4 + K + sqrt(d)/2: below it |z|^2 lies with a probability of 1 - e^(-1/2) or more
    (ibid., proposition 22)."""
    return steps**2 + size // 4 + steps + math.isqrt(size) // 2


def honest_of(share: float, cohort: int) -> int:
    """How many of a cohort have to be honest, where that is a share of it."""
    return max(1, math.ceil(share * cohort))
