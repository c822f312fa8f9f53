"""Randomness that privacy rests on: secret, and the same for every kind of it.

All of it comes from AES-256 in counter mode under a key of the operating system's randomness; one
key serves one purpose of one client in one round.
``torch``'s and ``numpy``'s generators are no match for somebody who wants to know: torch keeps 32
bits of a CPU generator's seed, which minutes of search give back, and the Mersenne twister's state
is linear in what it gives out.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

BLOCK = 1 << 14  # normals made at once: what is worked on stays in a core's cache
AHEAD = 1 << 12  # normals made where fewer are asked for, which are for those who ask next
GRID_BITS = 16  # a noised value is a multiple of 2^-16 of the noise's deviation, or half of that

Sources = Callable[..., "Source"]
"""From a path such as (round, client, purpose) to a source of its own."""


class Source:
    """A stream of bits that nobody can guess, and the draws that are made of it.

    Args:
        key: 32 bytes that are used for nothing else.
    """

    _ahead = torch.empty(0, dtype=torch.float64)  # normals that nobody has asked for yet

    def __init__(self, key: bytes) -> None:
        # One key, one stream: the counter may start anywhere, so it starts at 0.
        self._stream: CipherContext = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def bits(self, count: int) -> bytes:
        """``count`` bytes, uniform."""
        return self._stream.update(bytes(count))

    def uniform(self, count: int) -> Tensor:
        """Float64 [count] in (0, 1]: (k + 1/2) / 2^53, k uniform of 53 bits; the largest rounds
        to 1."""
        words = np.frombuffer(self.bits(8 * count), np.uint64) >> np.uint64(11)
        found = words.astype(np.float64)
        found += 0.5
        found *= 2.0**-53
        return torch.from_numpy(found)

    def normal(self, count: int) -> Tensor:
        """Standard normals, float64 [count], up to 8.65 standard deviations (Box and Muller 1958).

        A float32 normal of torch never goes beyond 5.77, so that a released value beyond it would
        be proof of what it was added to.
        """
        if count > AHEAD:
            return self._normal(count)
        if count > len(self._ahead):
            self._ahead = self._normal(AHEAD)
        found, self._ahead = self._ahead[:count], self._ahead[count:]
        return found

    def _normal(self, count: int) -> Tensor:
        found = torch.empty(count + count % 2, dtype=torch.float64)
        for piece in torch.split(found, BLOCK):
            radius, angle = self.uniform(len(piece)).chunk(2)
            radius.log_().mul_(-2).sqrt_()
            angle.mul_(2 * math.pi)
            first, second = piece.chunk(2)
            torch.cos(angle, out=first).mul_(radius)
            torch.sin(angle, out=second).mul_(radius)
        return found[:count]

    def sample(self, examples: int, rate: float) -> Tensor:
        """A Poisson sample: the indices, int64 [drawn] on the CPU, of the examples that were drawn,
        each with probability ``rate`` by itself."""
        if rate >= 1:
            return torch.arange(examples)
        return (self.uniform(examples) <= rate).nonzero().view(-1)

    def noised(self, total: Tensor, deviation: float, noise: Tensor | None = None) -> Tensor:
        """What may be released of a sum: itself plus noise, rounded to a grid.

        The sum of two floats tells of its terms by its last bits: not every float can be made of a
        given one and the noise (Mironov 2012; Jin et al. 2022, arXiv 2112.05307). Rounded to
        multiples of about 2^-16 of the deviation every result can be made of every sum, each by
        some 2^36 values of the noise, and nothing else is told.

        Args:
            total: [...], on any device; the result is on the same, in the same type.
            deviation: of the noise, >= 0; at 0 the sum itself is given.
            noise: of this source, float64 of the total's shape, of deviation 1; overwritten. Left
                out it is Gaussian.
        """
        if deviation <= 0:
            return total
        grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)  # its multiples are exact
        given = total.detach().reshape(-1)
        found = torch.empty_like(given)
        others = noise.view(-1) if noise is not None else None
        for start in range(0, len(given), BLOCK):
            piece, into = given[start : start + BLOCK], found[start : start + BLOCK]
            drawn = self.normal(len(piece)) if others is None else others[start : start + BLOCK]
            drawn = drawn.to(piece.device, non_blocking=True)
            places = drawn.mul_(deviation / grid).add_(piece, alpha=1 / grid).round_()
            torch.mul(places, grid, out=into)
        return found.view(total.shape)

    def witness(self, rows: Sequence[Tensor], factors: Tensor) -> None:
        """Told of each private step's gradients per sample, before they are summed and noised.

        Here nothing is done with them; the leak test compares them between two runs.

        Args:
            rows: for each trained tensor its gradients per sample, [n, ...].
            factors: by which each sample's are clipped, [n].
        """


def sources(deterministic: bool, seed: int) -> Sources:
    """The sources of a run: secret ones, or for tests the known ones of its seed."""
    return known(seed) if deterministic else secret


def secret(*path: int | str) -> Source:
    """A source under a fresh key of the operating system; the path says only what it is for."""
    return Source(os.urandom(32))


def known(seed: int) -> Sources:
    """For tests alone: sources whose draws anybody can repeat who knows the run's seed.

    Distinct paths give unrelated streams: the key is the SHA-256 of seed and path, all 256 bits.
    """

    def source(*path: int | str) -> Source:
        digest = hashlib.sha256(b"fedpers.privacy.noise")
        for piece in (seed, *path):
            text = f"{type(piece).__name__}:{piece}".encode()
            digest.update(len(text).to_bytes(4, "big") + text)
        return Source(digest.digest())

    return source
