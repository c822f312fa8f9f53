"""BFV: sums of quantised values, exact as integers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedpers.channels.sealed.cipher import SealedVector
from fedpers.channels.sealed.client import SealClient
from fedpers.channels.sealed.lattice import Channel
from fedpers.errors import ClientError
from fedpers.privacy.noise import Source


class BfvClient(SealClient):
    """BFV (Fan and Vercauteren 2012/144) with B-bit values, one or two a coefficient.

    A value v in [-r, r] becomes the integer floor((v + r) / step + u), u uniform in (0, 1]: its
    mean is exactly (v + r) / step. Integers are not negative, and fields are wide enough for the
    cohort's sum, so that sums neither borrow nor carry into the neighbour. Values sit in the
    polynomial's coefficients: sums need no slots, and so no batching prime.

    The error of an opened sum of K vectors is below K step, and zero in the mean; its standard
    deviation is at most sqrt(K) step / 2. The sum of the integers is exact.
    """

    @property
    def levels(self) -> int:
        """The largest integer of a value, 2^B - 1."""
        return (1 << self.parameters.value_bits) - 1

    def step(self, range: float) -> float:
        """The quantisation step 2 r / (2^B - 1)."""
        return 2 * range / self.levels

    def _encode(self, channel: Channel, values: Tensor, source: Source) -> object:
        scaled = (values + 1) * (self.levels / 2)
        integers = (
            (scaled + source.uniform(values.numel())).floor().clamp(0, self.levels).to(torch.int64)
        )
        fields = np.zeros(self.parameters.chunk, np.uint64)
        fields[: values.numel()] = integers.numpy().astype(np.uint64)
        low, *high = fields.reshape(self.parameters.values, -1)
        for field in high:
            low = low | (field << np.uint64(self.parameters.field_bits))
        return self.lattice.plaintext(channel, low)

    def open_integers(self, sealed: SealedVector) -> Tensor:
        """The sums of the integers, int64 [n], before they are scaled back.

        Raises:
            ClientError: a message that does not fit, a sum beyond terms * (2^B - 1), or anything
                where honest vectors have ended.
        """
        sealed.expect(self.parameters, self.key_id, ("vector", "sum"))
        pieces = []
        with Channel() as channel:
            for index in range(len(sealed.chunks)):
                plain = self._decrypt(channel, sealed, index)
                words = self.lattice.coefficients(channel, plain)
                for place in range(self.parameters.values):
                    fields = words >> np.uint64(place * self.parameters.field_bits)
                    pieces.append(fields & np.uint64((1 << self.parameters.field_bits) - 1))
        found = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
        sums, rest = found[: sealed.size], found[sealed.size :]
        most = sealed.terms * self.levels
        if int(sums.max()) > most or bool(rest.any()):
            raise ClientError(f"open: a sum beyond {most}, or of more values: not an honest one")
        return sums

    def open(self, sealed: SealedVector) -> Tensor:
        sums = self.open_integers(sealed).double()
        values = sums * self.step(sealed.range) - sealed.terms * sealed.range
        return values.float()
