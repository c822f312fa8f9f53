"""SealedVector vectors, and what an encryption library must offer to servers and to clients.

All clients share one secret key (TenSEAL has no threshold keys): the server sees sums only as
long as no client gives it the key, and a server and one client together read everybody.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpers.channels.sealed.guard import SEED_BYTES, Malformed, chunk_bytes, frame, unframe
from fedpers.channels.sealed.parameters import MAX_COHORT, MAX_ROW_WEIGHT, SCHEMES, Parameters
from fedpers.errors import ClientError
from fedpers.privacy.noise import Source

MAGIC = b"FPSEAL1\n"
# vector: fresh from a client; sum; mix: a row of weights times vectors; head: a fresh unit vector,
# to be compared with others.
KINDS = ("vector", "sum", "mix", "head")
MAX_SIZE = 1 << 32


@dataclass(frozen=True)
class SealedVector:
    """An encrypted vector [size].

    Args:
        scheme: of its parameter set.
        key_id: of the key it was encrypted under.
        kind: one of ``KINDS``.
        size: how many scalars.
        range: r, of the values [-r, r] that were sealed.
        terms: how many vectors were added up.
        weight: the sum of their absolute weights; the values lie within ``range * weight``.
        chunks: the ciphertexts' numbers, as ``guard.pack`` writes them.
    """

    scheme: str
    key_id: str
    kind: str
    size: int
    range: float
    terms: int
    weight: float
    chunks: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the ciphertexts."""
        return sum(map(len, self.chunks))

    def to_bytes(self) -> bytes:
        """A message; ``from_bytes`` reads it back."""
        header = {name: getattr(self, name) for name in _FIELDS}
        return frame(MAGIC, header, self.chunks)

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedVector:
        """Read what ``to_bytes`` wrote. What is in the chunks is checked when they are used.

        Raises:
            ClientError: any deviation, naming it.
        """
        try:
            header, chunks = unframe(MAGIC, data)
        except Malformed as error:
            raise ClientError(f"sealed: {error}") from None
        if set(header) != set(_FIELDS):
            raise ClientError(f"sealed: header: {len(header)} names, takes {sorted(_FIELDS)}")
        for name, (kind, fits) in _FIELDS.items():
            if type(header[name]) is not kind or not fits(header[name]):
                raise ClientError(f"sealed: header: {name} is {repr(header[name])[:40]}")
        return cls(**header, chunks=chunks)

    def expect(self, parameters: Parameters, key_id: str, kinds: Sequence[str]) -> None:
        """Check everything but the coefficients.

        Raises:
            ClientError: another scheme, key or kind, or chunks of another number or length.
        """
        if self.scheme != parameters.scheme:
            raise ClientError(f"sealed: scheme: got {self.scheme}, takes {parameters.scheme}")
        if self.key_id != key_id:
            raise ClientError(f"sealed: key id: got {self.key_id}, takes {key_id}")
        if self.kind not in kinds:
            raise ClientError(f"sealed: kind: got {self.kind}, takes {' or '.join(kinds)}")
        if self.terms > parameters.capacity:
            raise ClientError(f"sealed: terms: got {self.terms}, takes <= {parameters.capacity}")
        if self.kind in ("vector", "head") and (self.terms, self.weight) != (1, 1.0):
            raise ClientError(f"sealed: terms: {self.terms} of weight {self.weight} in a fresh one")
        if self.kind == "sum" and self.weight != self.terms:
            raise ClientError(f"sealed: weight: got {self.weight} for {self.terms} terms")
        if self.kind == "mix" and self.weight > MAX_ROW_WEIGHT:
            raise ClientError(f"sealed: weight: got {self.weight}, takes <= {MAX_ROW_WEIGHT:g}")
        count, length = shape_of(parameters, self.kind, self.size)
        if len(self.chunks) != count:
            raise ClientError(
                f"sealed: size: {len(self.chunks)} chunks for {self.size} values, takes {count}"
            )
        for chunk in self.chunks:
            if len(chunk) != length:
                raise ClientError(f"sealed: chunk: got {len(chunk)} bytes, takes {length}")


_FIELDS: dict[str, tuple[type, Callable[[Any], bool]]] = {
    "scheme": (str, lambda text: text in SCHEMES),
    "key_id": (str, lambda text: re.fullmatch("[0-9a-f]{16}", text) is not None),
    "kind": (str, lambda text: text in KINDS),
    "size": (int, lambda n: 1 <= n <= MAX_SIZE),
    "range": (float, lambda x: 0 < x < math.inf),
    "terms": (int, lambda n: 1 <= n <= MAX_COHORT),
    "weight": (float, lambda x: 0 < x < math.inf),
}


def shape_of(parameters: Parameters, kind: str, size: int) -> tuple[int, int]:
    """How many chunks a sealed vector of ``size`` values has, and the bytes of each."""
    degree, widths = parameters.degree, [(bits + 7) // 8 for bits in parameters.bits]
    # A stand-in for the primes: chunk_bytes asks only for their widths.
    primes = [1 << (8 * w - 1) for w in widths[: level_of(kind)]]
    seeded = kind in ("vector", "head")
    values = degree // 2 if kind == "head" else parameters.chunk
    length = chunk_bytes(primes, degree, 1 if seeded else 2, SEED_BYTES if seeded else 0)
    return -(-size // values), length


def level_of(kind: str) -> int:
    """Under how many primes the ciphertexts of a kind are."""
    return 2 if kind == "head" else 1


class ServerCipher(ABC):
    """What a server does with sealed vectors. It holds no secret key."""

    parameters: Parameters
    key_id: str

    @abstractmethod
    def add(self, sealed: Iterable[SealedVector]) -> SealedVector:
        """The sum of vectors of one size and range.

        They are read one at a time: a generator need not hold them all.

        Raises:
            ClientError: a message that does not fit or is malformed, or more terms than the
                parameter set has room for.
        """

    @abstractmethod
    def check(self, sealed: SealedVector) -> None:
        """Check every coefficient of a vector whose header fits.

        Raises:
            ClientError: it is malformed.
        """

    @abstractmethod
    def mix(self, weights: Tensor, sealed: Sequence[SealedVector]) -> list[SealedVector]:
        """Y = W X with weights [R, K] of absolute row sums in (0, 4], over K vectors.

        Raises:
            ClientError: as in ``add``.
            ConfigError: weights of another shape or size, or a scheme that cannot.
        """


class ClientCipher(ABC):
    """What a client does, with the secret key."""

    parameters: Parameters
    key_id: str

    @abstractmethod
    def seal(self, vector: Tensor, *, range: float, source: Source) -> SealedVector:
        """Encrypt a vector [n] of values in [-range, range].

        Args:
            source: of the stochastic rounding, where a scheme rounds. The randomness of the
                encryption is the library's own, from the system.

        Raises:
            ClientError: empty, not finite, or beyond the range (see ``clip``).
        """

    @abstractmethod
    def open(self, sealed: SealedVector) -> Tensor:
        """The sum or mixture as float32 [n].

        Raises:
            ClientError: a message that does not fit, or values that no sum of vectors within the
                range has.
        """

    @abstractmethod
    def seal_unit(self, vector: Tensor) -> SealedVector:
        """Encrypt u / |u| for a vector u [n]; a zero vector stays zero.

        Raises:
            ClientError: empty or not finite.
            ConfigError: a scheme that cannot.
        """

    @abstractmethod
    def open_unit(self, sealed: SealedVector) -> Tensor:
        """A unit vector, float64 [n]; zeros where it has another length than 1.

        Raises:
            ClientError: a message that does not fit.
        """

    @abstractmethod
    def tag(self, sealed: SealedVector, said: bytes) -> bytes:
        """The tag of a fresh vector, see ``Tags``.

        Args:
            said: what is said of it, and of no other.

        Raises:
            ClientError: it is none of this key, or malformed.
        """

    @abstractmethod
    def fit(self, sealed: SealedVector, terms: Sequence[tuple[bytes, bytes, int]]) -> bool:
        """Whether a sum or mixture is the one of these terms and no other ciphertext, see ``Tags``.

        Raises:
            ClientError: a message that does not fit, or is malformed.
        """

    def told(self, opened: Tensor, range: float) -> Tensor:
        """Opened values as they may be told to a server. Default: as they are.

        Args:
            range: of what was sealed.
        """
        return opened


def clip(vector: Tensor, range: float) -> Tensor:
    """The vector with values beyond [-range, range] set to its ends."""
    return vector.clamp(-range, range)


def check_values(vector: Tensor, range: float) -> None:
    """Refuse what cannot be sealed.

    Raises:
        ClientError: not a non-empty vector, not finite, or beyond the range: how many, how large.
    """
    if vector.ndim != 1 or not 1 <= vector.numel() <= MAX_SIZE:
        raise ClientError(f"seal: got shape {tuple(vector.shape)}, takes a vector of 1 or more")
    if not 0 < range < math.inf:
        raise ClientError(f"seal: got range {range}, takes a number > 0")
    if not bool(torch.isfinite(vector).all()):
        raise ClientError("seal: the vector holds NaN or infinity")
    beyond = vector.abs() > range
    if bool(beyond.any()):
        raise ClientError(
            f"seal: {int(beyond.sum())} values beyond the range {range:g}, the largest "
            f"{float(vector.abs().max()):g}; clip them or widen the range"
        )


def check_sum(values: Tensor, sealed: SealedVector, slack: float) -> None:
    """Refuse a result that no sum of values in the range has, or that goes on behind its end.

    Args:
        values: all that were opened, ``sealed.size`` of them and the padding.

    Raises:
        ClientError: which does not say what was found, as a server may read it.
    """
    limit, rest = sealed.range * sealed.weight, values[sealed.size :]
    inside = float(values.abs().max()) <= limit * (1 + slack)  # NaN is not
    if not inside or bool((rest.abs() > limit * slack).any()):
        takes = f"values within {limit:g} = range x weight, and no more than {sealed.size}"
        raise ClientError(f"open: not an honest sum, which has {takes}")


def new_sealed(parameters: Parameters, key_id: str, **fields: Any) -> SealedVector:
    """A sealed vector of this parameter set and key."""
    return SealedVector(scheme=parameters.scheme, key_id=key_id, **fields)
