"""Shamir's secret sharing (1979): any ``threshold`` shares give the secrets, fewer tell nothing.

Secrets and shares are integers modulo the largest prime below 2^128, 16 bytes each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

PRIME = 2**128 - 159
BYTES = 16


def element(data: bytes) -> int:
    """Bytes as an integer modulo the prime; 16 uniform ones are uniform to within 2^-120."""
    return int.from_bytes(data, "big") % PRIME


def split(
    secrets: Sequence[int], points: int, threshold: int, draw: Callable[[int], bytes]
) -> list[list[int]]:
    """Shares of several secrets, for the points 1 to ``points``: [point][secret].

    Args:
        secrets: each in [0, PRIME).
        threshold: in [1, points].
        draw: uniform bytes, secret ones.
    """
    # All polynomials at once: each coefficient holds those of all secrets side by side, so far
    # apart that nothing carries over, and a power of a small point is one product of long integers.
    apart = BYTES + (threshold * points.bit_length() + 15) // 8
    rest = draw(BYTES * len(secrets) * (threshold - 1))
    drawn = [element(rest[at : at + BYTES]) for at in range(0, len(rest), BYTES)]
    rows = [list(secrets)]
    rows += [drawn[at : at + len(secrets)] for at in range(0, len(drawn), len(secrets))]
    long = [
        int.from_bytes(b"".join(value.to_bytes(apart, "little") for value in row), "little")
        for row in rows
    ]
    shares = []
    for point in range(1, points + 1):
        total = 0
        for coefficient in reversed(long):  # Horner
            total = total * point + coefficient
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
