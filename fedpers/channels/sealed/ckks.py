"""CKKS: sums and mixtures of real values, with an error far below float32's use of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpers.channels.sealed import guard
from fedpers.channels.sealed.cipher import SealedVector, check_sum, check_values
from fedpers.channels.sealed.client import SealClient, padded
from fedpers.channels.sealed.lattice import Channel
from fedpers.channels.sealed.parameters import HEAD_SCALE_BITS, WEIGHT_BITS
from fedpers.errors import ClientError
from fedpers.privacy.noise import Source

_SLACK = 1e-4  # of the range, far above CKKS' error


class CkksClient(SealClient):
    """CKKS (Cheon et al. 2016/421), two values a slot: the real and the imaginary part.

    Sums and mixtures by real weights treat both alike. Values are divided by the range first; the
    error of a sum of K is about sqrt(K) 200 / 2^s of the range (N = 4096), s the scale's bits.
    """

    def _encode(self, channel: Channel, values: Tensor, source: Source) -> Any:
        slots = padded(values, self.parameters.chunk).view(np.complex128).tolist()
        return self._encoded(slots, 1, 2.0**self.parameters.value_bits)

    def open(self, sealed: SealedVector) -> Tensor:
        sealed.expect(self.parameters, self.key_id, ("vector", "sum", "mix"))
        extra = WEIGHT_BITS if sealed.kind == "mix" else 0
        scale = 2.0 ** (self.parameters.value_bits + extra)
        encoder = self.lattice.seal.CKKSEncoder(self.lattice.context)
        pieces = []
        with Channel() as channel:
            for index in range(len(sealed.chunks)):
                plain = self._decrypt(channel, sealed, index, scale)
                pieces.append(np.array(encoder.decode_complex(plain)).view(np.float64))
        values = torch.from_numpy(np.concatenate(pieces))[: sealed.size] * sealed.range
        check_sum(values, sealed, _SLACK)
        return values.float()

    def seal_unit(self, vector: Tensor) -> SealedVector:
        if self.parameters.scheme != "ckks-rows":
            raise self._cannot()
        vector = vector.detach().cpu().double()
        check_values(vector, float("1e300"))
        unit = vector / vector.norm().clamp_min(1e-300)
        size = self.parameters.degree // 2
        with Channel() as channel:
            plains = (
                self._encoded(padded(piece, size).tolist(), 2, 2.0**HEAD_SCALE_BITS)
                for piece in torch.split(unit, size)
            )
            chunks = [self._encrypt(channel, plain, "head") for plain in plains]
        return self._fresh("head", vector.numel(), 1.0, chunks)

    def open_products(self, sealed: Sequence[SealedVector]) -> Tensor:
        if self.parameters.scheme != "ckks-rows":
            raise self._cannot()
        (prime,) = self.lattice.primes(1)
        degree = self.parameters.degree
        dropped = self.lattice.primes(2)[1]
        scale = 2.0 ** (2 * HEAD_SCALE_BITS) / dropped  # rescaling divided by that prime
        found = []
        with Channel() as channel:
            for one in sealed:
                one.expect(self.parameters, self.key_id, ("product",))
                total = sum(map(int, self._product_at_roots(channel, one, prime))) % prime
                constant = total * pow(degree, -1, prime) % prime
                centred = constant - prime if constant > prime // 2 else constant
                found.append(centred / scale * (degree // 2))  # sum over slots = N/2 m_0
        values = torch.tensor(found, dtype=torch.float64)
        if found and not float(values.abs().max()) <= 1 + _SLACK:
            raise ClientError(f"open: an inner product of {float(values.abs().max()):g}, at most 1")
        return values.clamp(-1, 1).float()

    def _product_at_roots(self, channel: Channel, one: SealedVector, prime: int) -> guard.Words:
        """The plaintext at the N roots of X^N + 1; only the sum of its values means anything."""
        start, data = guard.width(prime), one.chunks[0]
        first = int.from_bytes(data[:start], "little")
        try:
            if first >= prime:
                raise guard.Malformed(f"coefficient: {first} is not below {prime}")
            second = guard.unpack(data[start:], (prime,), self.parameters.degree, 1)
        except guard.Malformed as error:
            raise ClientError(f"sealed: product: {error}") from None
        words = np.zeros((2, 1, self.parameters.degree), np.uint64)
        words[0, 0, 0], words[1] = first, second[0]
        return self.lattice.coefficients(channel, self._plain(channel, words, b"", 1.0))

    def _encoded(self, slots: list[Any], level: int, scale: float) -> Any:
        plain = self.lattice.seal.Plaintext()
        encoder = self.lattice.seal.CKKSEncoder(self.lattice.context)
        encoder.encode(slots, self.lattice.ids[level], scale, plain)
        return plain
