"""Values as integers that add: clipped, weighted, rounded at random, several to a word.

As in Kairouz et al. 2021 and Agarwal et al. 2021, without their noise: x becomes a whole number of
steps of its range, rounded up with the probability of what is left, so that its mean is x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpers.channels.identity.encoding import encode
from fedpers.channels.masked.masks import Words, low, packed, size, unpacked
from fedpers.channels.masked.messages import Dropped
from fedpers.errors import ClientError, ConfigError
from fedpers.privacy.noise import Source

Values = npt.NDArray[Any]  # of any float type; integers in fields that say so

WEIGHT = "weight"
WEIGHT_BITS = 24  # a client's weight is a multiple of 1 / (2^24 - 1)


@dataclass(frozen=True)
class Field:
    """One part, or one number that a client reports.

    Args:
        name: of it.
        length: of its vector, >= 1.
        bound: (low, high), finite: what is beyond is clipped to it.
        bits: of one client's value: its range has 2^bits - 1 steps, 1 to 32.
        weighted: whether the sum is of weight times value, or of values.
    """

    name: str
    length: int
    bound: tuple[float, float]
    bits: int
    weighted: bool = True

    def __post_init__(self) -> None:
        bottom, top = self.bound
        if not (np.isfinite(bottom) and np.isfinite(top) and bottom < top):
            raise ConfigError(f"range of {self.name}", self.bound, "two finite numbers, low < high")
        if not (1 <= self.bits <= 32 and self.length >= 1):
            raise ConfigError(f"bits of {self.name}", self.bits, "1 to 32, and a length >= 1")

    @property
    def steps(self) -> int:
        """The largest integer of one client."""
        return (1 << self.bits) - 1

    @property
    def signed(self) -> bytes:
        """Bytes that are the same for the same field alone."""
        bound = map(float, self.bound)
        return encode(self.name, self.length, *bound, self.bits, int(self.weighted))

    def width(self, clients: int) -> int:
        """b: bits of a sum of so many clients' integers."""
        return (clients * self.steps).bit_length()

    def lift(self, clients: int) -> int:
        """What is added to such a sum so that it is not below 0."""
        return 0

    def integers(self, values: Values, weight: float, source: Source) -> Words:
        """Weight times steps above the range's low end, rounded at random, uint64 [length].

        Raises:
            ClientError: another length, or NaN.
        """
        if values.shape != (self.length,):
            raise ClientError(f"{self.name}: got shape {values.shape}, takes ({self.length},)")
        if np.isnan(values).any():
            raise ClientError(f"{self.name}: got NaN, takes numbers; the training has diverged")
        bottom, top = self.bound
        found = np.clip(values.astype(np.float64), bottom, top)
        found -= bottom
        found *= self.steps / (top - bottom) * (weight if self.weighted else 1.0)
        found += source.uniform(self.length).numpy() if self.name != WEIGHT else 0.5
        np.floor(found, out=found)
        return np.minimum(found, self.steps).astype(np.uint64)

    def sum_of(
        self, total: npt.NDArray[np.int64], weights: float, clients: int
    ) -> npt.NDArray[np.float64]:
        """What a sum of integers says of values, float64 [length].

        Args:
            total: int64 [length].
            weights: of the clients, together.

        Raises:
            Dropped: it is none of so many clients.
        """
        weight = weights if self.weighted else float(clients)
        most = min(clients, weight) * self.steps + clients  # each may be rounded up by one
        if total.max() > min(most, clients * self.steps):
            raise self.beyond(clients)
        bottom, top = self.bound
        return total.astype(np.float64) * ((top - bottom) / self.steps) + bottom * weight

    def beyond(self, clients: int) -> Dropped:
        """The error of a sum that is none of so many clients."""
        got = f"got a sum of {self.name} beyond that of {clients} clients"
        return Dropped(f"{got}, takes one in range; a client sent what is no update")


class Layout:
    """How fields of ``clients`` clients lie in one vector of words.

    A sum of n integers up to q has b = bits(n q) bits; ``64 // b`` of them share a word, and a word
    of m is taken modulo 2^(m b), so that b bits a value travel and none carries into the next.

    Args:
        fields: their names differ; "weight" is taken.
        clients: the most that a sum will hold, >= 1.
    """

    def __init__(self, fields: Sequence[Field], clients: int) -> None:
        self.fields = (*fields, Field(WEIGHT, 1, (0, 1), WEIGHT_BITS, weighted=False))
        self.clients = clients
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise ConfigError("fields", names, f"names that differ, none of them {WEIGHT!r}")
        if not 1 <= clients < 1 << 31:
            raise ConfigError("clients", clients, "1 or more")

    def width(self, field: Field) -> int:
        """b: bits of a sum."""
        return field.width(self.clients)

    @cached_property
    def _places(self) -> dict[str, tuple[slice, int]]:
        """For each field its words, and how many values share one."""
        places, at = {}, 0
        for field in self.fields:
            shared = 64 // self.width(field)
            words = -(-field.length // shared)
            places[field.name] = slice(at, at + words), shared
            at += words
        return places

    @property
    def words(self) -> int:
        """Words of the whole vector."""
        return int(max(place.stop for place, _ in self._places.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole vector on its way."""
        return sum(self._size(field) for field in self.fields)

    @property
    def signed(self) -> bytes:
        """Bytes that are the same for the same layout alone."""
        return encode(self.clients, *(field.signed for field in self.fields))

    def quantised(self, values: Mapping[str, Values], weight: float, source: Source) -> Words:
        """One client's words.

        Args:
            values: for each field [length], in any float type.
            weight: in [0, 1], times which each weighted value is taken before it is rounded.
            source: of the rounding.

        Raises:
            ClientError: a field is missing or too much, of another length, or holds NaN.
        """
        if values.keys() != (names := self._places.keys() - {WEIGHT}):
            raise ClientError(f"fields: got {sorted(values)}, takes {sorted(names)}")
        if not 0 <= weight <= 1:
            raise ClientError(f"weight: got {weight}, takes 0 to 1")
        top = (1 << WEIGHT_BITS) - 1
        whole = round(weight * top) / top  # so that the weights that add are those that multiply
        named = {**values, WEIGHT: np.array([whole])}
        found = np.zeros(self.words, np.uint64)
        for field in self.fields:
            place, shared = self._places[field.name]
            padded = np.zeros((place.stop - place.start) * shared, np.uint64)
            padded[: field.length] = field.integers(np.asarray(named[field.name]), whole, source)
            for slot in range(shared):  # what is below 0 borrows from the next, and sums give back
                shift = np.uint64(slot * self.width(field))
                found[place] += padded[slot::shared] << shift
        return found

    def sums(self, words: Words, clients: int) -> dict[str, npt.NDArray[np.float64]]:
        """What the sum of ``clients`` clients' words says of each field: the sum of its values,
        or of weight times value, and of the weights.

        Raises:
            Dropped: no such sum can be of that many clients: one sent garbage.
        """
        whole = {field.name: self.integers(words, field) for field in self.fields}
        top = (1 << WEIGHT_BITS) - 1
        weights = int(whole[WEIGHT][0])
        if weights > clients * top:
            raise self.fields[-1].beyond(clients)
        known = weights / top, clients
        return {field.name: field.sum_of(whole[field.name], *known) for field in self.fields}

    def integers(self, words: Words, field: Field) -> npt.NDArray[np.int64]:
        """A field's sums as they are, int64 [length]."""
        place, shared = self._places[field.name]
        width, lift = self.width(field), field.lift(self.clients)
        lifted = words[place] + np.uint64(sum(lift << slot * width for slot in range(shared)))
        found = np.empty((place.stop - place.start) * shared, np.uint64)
        for slot in range(shared):
            found[slot::shared] = lifted >> np.uint64(slot * width) & low(width)
        return found[: field.length].view(np.int64) - lift

    def packed(self, words: Words) -> bytes:
        """The vector's bytes on its way."""
        pieces = []
        for field in self.fields:
            place, shared = self._places[field.name]
            pieces.append(packed(words[place], shared * self.width(field)))
        return b"".join(pieces)

    def unpacked(self, data: bytes) -> Words:
        """The words of ``nbytes`` bytes."""
        found, at = np.empty(self.words, np.uint64), 0
        for field in self.fields:
            place, shared = self._places[field.name]
            count, bits = place.stop - place.start, shared * self.width(field)
            found[place] = unpacked(data[at : at + self._size(field)], count, bits)
            at += self._size(field)
        return found

    def _size(self, field: Field) -> int:
        place, shared = self._places[field.name]
        return size(place.stop - place.start, shared * self.width(field))
