"""Noise in a direction that says nothing, as long as a sum of exponentials: pure epsilon."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedpers.errors import ClientError
from fedpers.privacy import MECHANISMS, Mechanism, Profile
from fedpers.privacy.noise import Source


@MECHANISMS.register("spherical")
@dataclass(frozen=True)
class Spherical(Mechanism):
    """A sum plus noise of a density like exp(-|x| / b): a step's epsilon is bound / b (Hardt and
    Talwar 2010, arXiv 0907.3754). In each of d values its deviation is sqrt(d + 1) b.

    Attributes:
        scalars: the most values of a sum. One of fewer gets as much noise in each, and costs less.
    """

    scalars: int = 4096

    def noised(self, total: Tensor, bound: float, source: Source) -> Tensor:
        count = total.numel()
        if count > self.scalars:
            raise ClientError(f"spherical: got {count} values, takes at most {self.scalars}")
        direction, length = source.normal(count), -source.uniform(count).log().sum()
        noise = direction * (length / (direction.norm() * math.sqrt(count + 1)))
        return source.noised(total, self.sigma * bound, noise)

    def profiles(self) -> tuple[Profile, ...]:
        epsilon = math.sqrt(self.scalars + 1) / self.sigma
        if self.rate < 1:  # Balle et al. 2018, arXiv 1807.01647, theorem 8
            epsilon = np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + epsilon)

        def delta(at):  # nothing that is epsilon-DP costs more than randomised response
            told, hidden = np.minimum(at - epsilon, 0), np.minimum(at + epsilon, 0)
            sum_of = np.expm1(told) + math.exp(-epsilon) * np.expm1(hidden)
            return -sum_of / (1 + math.exp(-epsilon))

        return (Profile(delta, -epsilon, epsilon),)
