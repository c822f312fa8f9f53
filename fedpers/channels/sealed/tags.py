"""Tags that add up as ciphertexts do: by them clients know the server's sums of what they sealed.

A homomorphic MAC (Agrawal and Boneh 2009, "Homomorphic MACs: MAC-based integrity for network
coding", section 3) over Z_q, q the prime of the ciphertexts: of a ciphertext c, all its
coefficients as one vector,

    t = <r, c> + b   mod q,

with r and b from a key that the clients have and the server has not: r is the same for all
ciphertexts, b is drawn for this one alone and hides what t tells of r. A sum of w_k c_k has
<r, sum> = sum_k w_k (t_k - b_k), and any other ciphertext has so with probability 1 / q for each
of ``LANES`` such tags: 2^-96 for the smallest q. So a sum can be checked without its terms, which
are many times its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpers.channels.identity.encoding import encode
from fedpers.channels.identity.identity import derive
from fedpers.channels.sealed.guard import Words

LANES = 2
BYTES = 8 * LANES  # of a tag
_HALF = np.uint64(28)  # bits of the lower half of a coefficient below 2^56
_LOW = np.uint64((1 << 28) - 1)
_WORD, _MASK = np.uint64(32), np.uint64((1 << 32) - 1)
_RUN = 128  # products of halves whose sum stays below 2^63


class Tags:
    """The tags of one key.

    Args:
        secret: what the clients share and the server has not.
        prime: q, below 2^56.
    """

    def __init__(self, secret: bytes, prime: int) -> None:
        self.prime = prime
        kinds = (encode("fedpers sealed tags", kind) for kind in ("vector", "pads"))
        keys = (HKDF(SHA256(), 32, salt=None, info=kind).derive(secret) for kind in kinds)
        self._vector, self._pads = keys

    def of(self, chunks: Iterable[Words], said: bytes) -> bytes:
        """The tag of a ciphertext.

        Args:
            chunks: its polynomials, [2, 1, N] each.
            said: what is said of it, which no two ciphertexts have in common.
        """
        pairs = zip(self._products(chunks), self._pad(said), strict=True)
        return b"".join(((x + pad) % self.prime).to_bytes(8, "big") for x, pad in pairs)

    def fit(self, chunks: Iterable[Words], terms: Sequence[tuple[bytes, bytes, int]]) -> bool:
        """Whether a ciphertext is the sum of others.

        Args:
            chunks: its polynomials.
            terms: of each addend what was said of it, its tag, and how many times it is in it.
        """
        due = [0] * LANES
        for said, tag, times in terms:
            if len(tag) != BYTES:
                return False
            for lane, pad in enumerate(self._pad(said)):
                due[lane] += times * (int.from_bytes(tag[8 * lane : 8 * lane + 8], "big") - pad)
        return self._products(chunks) == [x % self.prime for x in due]

    def _pad(self, said: bytes) -> list[int]:
        """b for each lane: 16 bytes modulo q, which is uniform but for 2^-72."""
        drawn = derive(self._pads, said)
        return [int.from_bytes(drawn[16 * k : 16 * k + 16], "big") for k in range(LANES)]

    def _products(self, chunks: Iterable[Words]) -> list[int]:
        """<r, c> modulo q for each lane."""
        found = [0] * LANES
        for index, words in enumerate(chunks):
            halves = _halves(words.reshape(-1))
            for lane, r in enumerate(self._drawn(index, words.size)):
                found[lane] += _dot(halves, _halves(r))
        return [x % self.prime for x in found]

    def _drawn(self, index: int, size: int) -> Words:
        """r for a chunk, [lanes, size] below q: AES-256-CTR, a counter of its own a chunk."""
        start = index.to_bytes(8, "big") + bytes(8)
        stream = Cipher(AES(self._vector), CTR(start)).encryptor().update(bytes(8 * LANES * size))
        drawn: Words = np.frombuffer(stream, "<u8").reshape(LANES, size) % np.uint64(self.prime)
        return drawn


def _halves(numbers: Words) -> tuple[Words, Words]:
    """The lower 28 bits and the upper ones, of numbers below 2^56."""
    return numbers & _LOW, numbers >> _HALF


def _dot(one: tuple[Words, Words], other: tuple[Words, Words]) -> int:
    """<one, other>, exactly, of vectors in halves."""
    cross = _total(one[0] * other[1]) + _total(one[1] * other[0])
    return _total(one[0] * other[0]) + (cross << 28) + (_total(one[1] * other[1]) << 56)


def _total(products: Words) -> int:
    """The sum of numbers below 2^56."""
    runs = np.add.reduceat(products, np.arange(0, len(products), _RUN))
    return (int((runs >> _WORD).sum()) << 32) + int((runs & _MASK).sum())
