"""First and second moments of features by class, as one vector that clients can only add up.

Features are first brought to a common scale, the *frame*: by mean and spread over all clients, a
sum before the sum, so that what is quantised on its way is of about 1. Where sums are noised there
is no such step; features are then shortened to a fixed norm.

What an example adds does not hang on other examples where it is to be noised: then second moments
are around zero. Else they are around its client's own mean of its class, so that their mean is what
varies within clients and classes alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 3.0  # features to be noised are shortened to a norm of so many sqrt(d)
FARTHEST = 10.0  # spreads from the mean: beyond is an outlier that would decide for all
FLOOR = 1e-6


class Moments(NamedTuple):
    """Of all clients' examples together, in the features' own units.

    Attributes:
        share: of the examples in each class, [C].
        mean: of each class, [C, d]; that of all where it has no example.
        within: the covariance within clients and classes, or within classes, [d, d].
    """

    share: Tensor
    mean: Tensor
    within: Tensor


class Frame(NamedTuple):
    """(z - mean) / spread, both [d], is what is added up.

    Attributes:
        apart: whether no row may hang on other examples, and each is bounded.
    """

    mean: Tensor
    spread: Tensor
    apart: bool

    @classmethod
    def fixed(cls, features: int) -> Frame:
        """For sums that are noised."""
        spread = torch.full((features,), LONGEST * features**0.5)
        return cls(torch.zeros(features), spread, True)

    @classmethod
    def of(cls, vector: Tensor) -> Frame:
        """From the mean of ``frame_rows``."""
        mean, square = vector.double().chunk(2)
        spread = (square - mean.square()).clamp_min(0).sqrt()
        typical = spread.square().mean().sqrt().clamp_min(FLOOR)
        return cls(mean, spread.clamp_min(0.03 * typical), False)

    def take(self, z: Tensor) -> Tensor:
        """Features [n, d] in this frame, bounded."""
        z = (z.double() - self.mean) / self.spread
        if not self.apart:
            return z.clamp(-FARTHEST, FARTHEST)
        shortened: Tensor = z / z.norm(dim=1, keepdim=True).clamp_min(1.0)
        return shortened


def width(features: int, classes: int) -> int:
    """The length of the vector."""
    return classes + 1 + classes * features + features * (features + 1) // 2


def frame_rows(z: Tensor) -> Tensor:
    """What each example adds to the frame: features [n, d] and their squares."""
    return torch.cat([z, z.square()], 1).float()


def rows(z: Tensor, y: Tensor, classes: int, frame: Frame) -> Tensor:
    """What each example adds, [n, width]; of norm sqrt(3) at most where rows are apart.

    Args:
        z: features [n, d].
        y: classes [n], or numbers, which are one class.
    """
    z, onehot = frame.take(z), groups(y, classes)
    counts = onehot.sum(0).clamp_min(1)
    around = z if frame.apart else z - onehot @ ((onehot.T @ z) / counts[:, None])
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    # Off the diagonal once with sqrt(2): the norm is that of the whole matrix.
    second = around[:, i] * around[:, j] * torch.where(i == j, 1.0, 2**0.5)
    first = (onehot[:, :, None] * z[:, None, :]).flatten(1)
    # Of n examples in k classes n - k are free to vary.
    used = 0 * onehot if frame.apart else onehot / counts
    return torch.cat([onehot, used.sum(1, keepdim=True), first, second], 1).float()


def groups(y: Tensor, classes: int) -> Tensor:
    """The classes [n] as ones and zeros [n, C]; all of one where they are numbers."""
    index = torch.zeros(len(y), dtype=torch.int64) if y.is_floating_point() else y.cpu()
    return F.one_hot(index, classes).double()


def read(vector: Tensor, classes: int, frame: Frame) -> Moments:
    """The moments in a mean of ``rows``; noise may be in it."""
    features = len(frame.mean)
    sizes = [classes, 1, classes * features, features * (features + 1) // 2]
    share, used, first, second = torch.split(vector.double(), sizes)
    share = share.clamp_min(0)
    total = share.sum().clamp_min(FLOOR)
    mean = first.view(classes, features) / share.clamp_min(FLOOR)[:, None]
    mean = torch.where(share[:, None] > FLOOR, mean, 0.0)
    if frame.apart:  # a mean is no longer than what it is of, but noise on a rare class is
        mean = mean / mean.norm(dim=1, keepdim=True).clamp_min(1.0)
    i, j = torch.triu_indices(features, features)
    upper = torch.zeros(features, features, dtype=torch.float64)
    upper[i, j] = second / torch.where(i == j, 1.0, 2**0.5)
    whole = upper + upper.triu(1).T
    if frame.apart:
        within = whole / total - (mean.T * (share / total)) @ mean
    else:
        within = whole / (total - used).clamp_min(FLOOR)
    units = frame.spread[:, None] * frame.spread
    return Moments(share / total, mean * frame.spread + frame.mean, within * units)


def whitener(within: Tensor, ridge: float) -> Tensor:
    """(1 - ridge) within + ridge tr(within)/d I to the power -1/2, symmetric, [d, d].

    Negative eigenvalues, of noise, count as none.
    """
    values, vectors = torch.linalg.eigh(within.double())
    values = values.clamp_min(0)
    values = (1 - ridge) * values + ridge * values.mean().clamp_min(FLOOR**2)
    found: Tensor = (vectors * values.rsqrt()) @ vectors.T
    return found
