"""Exact draws of discrete Gaussians, from secret bits.

N_Z(V) gives an integer x the probability e^(-x^2 / 2V) / (sum over all integers), as in Canonne,
Kamath and Steinke 2020 (arXiv 2004.00010, definition 1). Their sampler takes one value at a time;
this one rejects many at once. A float never decides what it could get wrong: where it is too close
to call, 60 digits and 128 more bits do. What is cut off lies beyond 14 standard deviations, a
probability below 1e-42 a value, which adds as much to delta.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedpers.privacy.noise import Source

Integers = npt.NDArray[np.int64]

LEAST_VARIANCE = 16
MOST_VARIANCE = 2**88
FARTHEST = 14  # standard deviations
WEIGHT_BITS = 62
CLOSE = 2.0**-42  # to call; floats err by less than 2^-48 here
BLOCK = 1 << 14  # candidates at once: they stay in a core's cache


class Buckets(NamedTuple):
    """Half of the line, cut into pieces of 2^bits integers.

    Attributes:
        bits: of a place in a bucket.
        until: [K] up to which number, of 62 bits, one is for each bucket.
        scale: times e^(-x^2 / 2V) is at most ...
        weights: ... the weight of the bucket that x is in.
    """

    bits: int
    until: npt.NDArray[np.uint64]
    scale: int
    weights: tuple[int, ...]


@lru_cache(64)
def _buckets(variance: int) -> Buckets:
    bits = math.isqrt(variance).bit_length() - 2  # a quarter to a half of a standard deviation
    count = math.ceil(FARTHEST * math.sqrt(variance) / 2**bits)
    heights = [math.exp(-((k << bits) ** 2) / (2 * variance)) for k in range(count)]
    scale = math.floor(2**WEIGHT_BITS / sum(heights) * (1 - 2.0**-30))
    # A little above, so that no weight is below what it has to be.
    weights = [math.ceil(scale * height * (1 + 2.0**-40)) + 1 for height in heights]
    until = np.cumsum(weights, dtype=np.uint64)
    return Buckets(bits, until, scale, tuple(weights))


def discrete_gaussian(variance: int, count: int, source: Source) -> Integers:
    """``count`` independent draws of N_Z(variance), int64 [count].

    Args:
        variance: V, of 16 to 2^88.
        source: of all bits: 25 to 30 bytes a value.

    Raises:
        ValueError: another variance.
    """
    if not LEAST_VARIANCE <= variance <= MOST_VARIANCE:
        raise ValueError(f"variance: got {variance}, takes {LEAST_VARIANCE} to {MOST_VARIANCE}")
    found, filled = np.empty(count, np.int64), 0
    while filled < count:
        candidates = min(BLOCK, int(1.25 * (count - filled)) + 16)
        drawn = _accepted(variance, candidates, source)[: count - filled]
        found[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return found


def _accepted(variance: int, candidates: int, source: Source) -> Integers:
    """A bucket by its weight, a place in it, a sign; kept with the probability
    scale e^(-x^2 / 2V) / weight, so that all x are as likely as they should be."""
    bits, until, scale, weights = _buckets(variance)
    which, where, kept = np.frombuffer(source.bits(24 * candidates), "<u8").reshape(3, candidates)
    bucket = np.searchsorted(until, which >> np.uint64(64 - WEIGHT_BITS), side="right")
    place = (where & np.uint64((1 << bits) - 1)).astype(np.int64)
    x = (bucket.astype(np.int64) << bits) + place
    negative = where >> np.uint64(63) == 1
    inside = (bucket < len(weights)) & ~(negative & (x == 0))  # 0 has one sign
    ratios = np.array([*(scale / weight for weight in weights), 0.0])
    chance = ratios[bucket] * np.exp(-(x.astype(np.float64) ** 2) / (2.0 * variance))
    short = chance - kept.astype(np.float64) * 2.0**-64
    taken = short > 0
    for k in np.flatnonzero(inside & (np.abs(short) <= CLOSE)):
        exact = scale, weights[bucket[k]], int(x[k]), variance
        taken[k] = _decided(int(kept[k]), *exact, source)
    found: Integers = np.where(negative, -x, x)[inside & taken]
    return found


def _decided(word: int, scale: int, weight: int, x: int, variance: int, source: Source) -> bool:
    """Whether a uniform number, of which ``word`` are the first 64 bits, is below
    scale e^(-x^2 / 2V) / weight."""
    uniform = word << 128 | int.from_bytes(source.bits(16), "big")
    with localcontext(prec=60):
        chance = scale * (-Decimal(x * x) / (2 * variance)).exp() / weight
        return Decimal(uniform) / 2**192 < chance
