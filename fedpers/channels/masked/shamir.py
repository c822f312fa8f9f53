"""Shamir's secret sharing (1979): any ``threshold`` shares give the secrets, fewer tell nothing.

Secrets and shares are integers modulo the largest prime below 2^128, 16 bytes each, big end first;
several of them side by side are a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

PRIME = 2**128 - 159
BYTES = 16


def elements(row: bytes) -> list[int]:
    """Each 16 bytes as an integer modulo the prime; uniform bytes are uniform to within 2^-120."""
    read = int.from_bytes
    return [read(row[at : at + BYTES], "big") % PRIME for at in range(0, len(row), BYTES)]


def reduced(row: bytes) -> bytes:
    """The same integers, each below the prime."""
    return b"".join(element.to_bytes(BYTES, "big") for element in elements(row))


def split(secrets: bytes, drawn: Sequence[bytes], points: int) -> list[bytes]:
    """Shares of several secrets for the points up to ``points``, those of the first ones given.

    A polynomial of degree t - 1 is as uniform if its values at 1 to t - 1 are drawn as if its
    coefficients were. So who can derive its share need not be sent it.

    Args:
        secrets: a row.
        drawn: t - 1 rows, uniform: the shares of the points 1 to t - 1.
        points: at least t.

    Returns:
        points - t + 1 rows: the shares of the points t to ``points``.
    """
    # Lagrange through 0 to t - 1. A point's values of all secrets lie side by side in one long
    # integer, so far apart that no sum of t products of two elements carries over.
    t, count = len(drawn) + 1, len(secrets) // BYTES
    apart = 2 * BYTES + (t.bit_length() + 7) // 8
    wide = np.zeros((t, count, apart), np.uint8)
    rows = np.frombuffer(b"".join((secrets, *drawn)), np.uint8)
    wide[:, :, apart - BYTES :] = rows.reshape(t, count, BYTES)
    long = [int.from_bytes(row.tobytes(), "big") for row in wide]
    shares = []
    for weights in _weights_beyond(t, points):
        total = sum(w * values for w, values in zip(weights, long, strict=True))
        data = total.to_bytes(apart * count, "big")
        found = [data[at : at + apart] for at in range(0, len(data), apart)]
        shares.append(
            b"".join((int.from_bytes(p, "big") % PRIME).to_bytes(BYTES, "big") for p in found)
        )
    return shares


@lru_cache(8)
def _weights_beyond(t: int, points: int) -> list[list[int]]:
    """For each point from t to ``points`` what the values at 0 to t - 1 weigh there."""
    inverse = [0, *(pow(n, -1, PRIME) for n in range(1, points + 1))]
    factorial = [1]  # inverse ones
    for n in range(1, t):
        factorial.append(factorial[-1] * inverse[n] % PRIME)
    scales = [(-1) ** (t - 1 - j) * factorial[j] * factorial[t - 1 - j] for j in range(t)]
    found = []
    for point in range(t, points + 1):
        every = math.prod(range(point - t + 1, point + 1)) % PRIME
        found.append([every * inverse[point - j] * scales[j] % PRIME for j in range(t)])
    return found


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The row of secrets of which ``shares`` has a threshold of rows, by point. (Lagrange, at 0.)

    More than a threshold is right too if all are; a wrong share gives wrong secrets.
    """
    weights = _weights_at_zero(tuple(shares))
    rows = zip(*(elements(row) for row in shares.values()), strict=True)
    secrets = (sum(w * s for w, s in zip(weights, row, strict=True)) % PRIME for row in rows)
    return b"".join(secret.to_bytes(BYTES, "big") for secret in secrets)


@lru_cache(64)  # with all pairs the same helpers answer for every owner
def _weights_at_zero(points: tuple[int, ...]) -> list[int]:
    every = math.prod(points)
    below = [
        point * math.prod(other - point for other in points if other != point) for point in points
    ]
    return [every * pow(product, -1, PRIME) % PRIME for product in below]


def fits(shares: Mapping[int, bytes], point: int, row: bytes) -> bool:
    """Whether ``row`` is the share of ``point`` beside a threshold of right ones."""
    moved = {(other - point): values for other, values in shares.items()}  # their 0 is the point
    return point in shares or combine(moved) == reduced(row)
