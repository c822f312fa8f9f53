"""CKKS: sums and mixtures of real values, with an error far below float32's use of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpers.channels.sealed.cipher import SealedVector, check_sum, check_values
from fedpers.channels.sealed.client import SealClient, padded
from fedpers.channels.sealed.lattice import Channel
from fedpers.channels.sealed.parameters import HEAD_SCALE_BITS, WEIGHT_BITS
from fedpers.privacy.noise import Source

HEAD_SCALE = 2.0**HEAD_SCALE_BITS
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
        values = torch.from_numpy(np.concatenate(pieces)) * sealed.range
        check_sum(values, sealed, _SLACK)
        return values[: sealed.size].float()

    def seal_unit(self, vector: Tensor) -> SealedVector:
        if self.parameters.scheme != "ckks-rows":
            raise self._cannot()
        vector = vector.detach().cpu().double()
        check_values(vector, float("1e300"))
        unit = vector / vector.norm().clamp_min(1e-300)
        size = self.parameters.degree // 2
        with Channel() as channel:
            plains = (
                self._encoded(padded(piece, size).tolist(), 2, HEAD_SCALE)
                for piece in torch.split(unit, size)
            )
            chunks = [self._encrypt(channel, plain, "head") for plain in plains]
        return self._fresh("head", vector.numel(), 1.0, chunks)

    def open_unit(self, sealed: SealedVector) -> Tensor:
        if self.parameters.scheme != "ckks-rows":
            raise self._cannot()
        sealed.expect(self.parameters, self.key_id, ("head",))
        encoder = self.lattice.seal.CKKSEncoder(self.lattice.context)
        with Channel() as channel:
            pieces = [
                np.array(encoder.decode_double(self._decrypt(channel, sealed, index, HEAD_SCALE)))
                for index in range(len(sealed.chunks))
            ]
        unit = torch.from_numpy(np.concatenate(pieces))[: sealed.size]
        honest = abs(float(unit.norm()) - 1) <= _SLACK  # not of NaN
        return unit if honest else torch.zeros_like(unit)

    def told(self, opened: Tensor, range: float) -> Tensor:
        """On a grid that is coarse beside the scheme's error, see ``Parameters.grid``."""
        step = range * self.parameters.grid
        return (opened.double() / step).round().mul(step).float()

    def _encoded(self, slots: list[Any], level: int, scale: float) -> Any:
        plain = self.lattice.seal.Plaintext()
        encoder = self.lattice.seal.CKKSEncoder(self.lattice.context)
        encoder.encode(slots, self.lattice.ids[level], scale, plain)
        return plain
