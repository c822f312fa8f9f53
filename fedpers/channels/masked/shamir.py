"""Shamir's secret sharing (1979): any ``threshold`` shares give the secrets, fewer tell nothing.

Secrets and shares are integers modulo the largest prime below 2^128, 16 bytes each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PRIME = 2**128 - 159
BYTES = 16


def elements(data: bytes) -> list[int]:
    """Each 16 bytes as an integer modulo the prime; uniform bytes are uniform to within 2^-120."""
    return [
        int.from_bytes(data[at : at + BYTES], "big") % PRIME for at in range(0, len(data), BYTES)
    ]


def split(secrets: Sequence[int], drawn: Sequence[Sequence[int]], points: int) -> list[list[int]]:
    """Shares of several secrets for the points up to ``points``, those of the first ones given.

    A polynomial of degree t - 1 is as uniform if its values at 1 to t - 1 are drawn as if its
    coefficients were. So who can derive its share need not be sent it.

    Args:
        secrets: each in [0, PRIME).
        drawn: [t - 1][secret], uniform: the shares of the points 1 to t - 1.
        points: at least t.

    Returns:
        [points - t + 1][secret]: the shares of the points t to ``points``.
    """
    # Lagrange through 0 to t - 1. A point's values of all secrets lie side by side in one long
    # integer, so far apart that no sum of t products of two elements carries over.
    t = len(drawn) + 1
    apart = 2 * BYTES + (t.bit_length() + 7) // 8
    long = [
        int.from_bytes(b"".join(value.to_bytes(apart, "little") for value in row), "little")
        for row in (secrets, *drawn)
    ]
    inverse = [0, *(pow(n, -1, PRIME) for n in range(1, points + 1))]
    factorial = [1]  # inverse ones
    for n in range(1, t):
        factorial.append(factorial[-1] * inverse[n] % PRIME)
    scales = [(-1) ** (t - 1 - j) * factorial[j] * factorial[t - 1 - j] for j in range(t)]
    shares = []
    for point in range(t, points + 1):
        every = math.prod(range(point - t + 1, point + 1)) % PRIME
        weights = [every * inverse[point - j] * scales[j] % PRIME for j in range(t)]
        total = sum(w * values for w, values in zip(weights, long, strict=True))
        data = total.to_bytes(apart * len(secrets), "little")
        found = [data[at : at + apart] for at in range(0, len(data), apart)]
        shares.append([int.from_bytes(piece, "little") % PRIME for piece in found])
    return shares


def combine(shares: Mapping[int, Sequence[int]]) -> list[int]:
    """The secrets of which ``shares`` has a threshold: point -> [secret]. (Lagrange, at 0.)

    More than a threshold is right too if all are; a wrong share gives wrong secrets.
    """
    weights = {}
    for point in shares:
        above, below = 1, 1
        for other in shares:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights[point] = above * pow(below, -1, PRIME) % PRIME
    rows = list(zip(*shares.values(), strict=True))
    return [sum(w * s for w, s in zip(weights.values(), row, strict=True)) % PRIME for row in rows]


def fits(shares: Mapping[int, Sequence[int]], point: int, row: Sequence[int]) -> bool:
    """Whether ``row`` is the share of ``point`` beside a threshold of right ones."""
    moved = {(other - point): values for other, values in shares.items()}  # their 0 is the point
    return point in shares or combine(moved) == list(row)
