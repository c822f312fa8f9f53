"""The server's arithmetic on sealed vectors, without a secret key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedpers.channels.sealed import guard
from fedpers.channels.sealed.cipher import SealedVector, ServerCipher, level_of, new_sealed
from fedpers.channels.sealed.lattice import Channel, Lattice
from fedpers.channels.sealed.parameters import (
    MAX_ROW_WEIGHT,
    WEIGHT_BITS,
    Parameters,
)
from fedpers.errors import ClientError, ConfigError

_HALF = 28  # bits of the lower half of a coefficient, so that products with weights stay exact


class SealServer(ServerCipher):
    """BFV and CKKS under SEAL.

    Args:
        parameters: the scheme's.
        key_id: of the clients' key.
    """

    def __init__(self, parameters: Parameters, key_id: str) -> None:
        self.parameters, self.key_id = parameters, key_id
        self.lattice = Lattice(parameters)
        self._evaluator = self.lattice.seal.Evaluator(self.lattice.context)

    def add(self, sealed: Iterable[SealedVector]) -> SealedVector:
        first: SealedVector | None = None
        sums: list[Any] = []
        terms = 0
        with Channel() as channel:
            for one in sealed:
                one.expect(self.parameters, self.key_id, ("vector", "sum"))
                if first is not None:
                    _check_alike(first, one)
                terms += one.terms
                if terms > self.parameters.capacity:
                    raise ClientError(
                        f"add: more than {self.parameters.capacity} terms, the sum would wrap; "
                        "make keys for a larger cohort"
                    )
                ciphertexts = (self._load(channel, one, index) for index in range(len(one.chunks)))
                if first is None:
                    first, sums = one, list(ciphertexts)
                    continue
                for total, ciphertext in zip(sums, ciphertexts, strict=True):
                    self._add_to(total, ciphertext)
            if first is None:
                raise ClientError("add: nothing to add")
            primes = self.lattice.primes(1)
            chunks = (guard.pack(self.lattice.polynomials(channel, s), primes) for s in sums)
            return self._sealed(first, "sum", terms, float(terms), tuple(chunks))

    def check(self, sealed: SealedVector) -> None:
        for index in range(len(sealed.chunks)):
            self._words(sealed, index)

    def mix(self, weights: Tensor, sealed: Sequence[SealedVector]) -> list[SealedVector]:
        if (scheme := self.parameters.scheme) != "ckks-rows":
            raise ConfigError("encryption.scheme", scheme, "ckks-rows for mixtures", "new keys")
        if weights.ndim != 2 or weights.shape[1] != len(sealed) or not sealed:
            got = tuple(weights.shape)
            raise ConfigError("weights", got, f"[rows, {len(sealed)}], a column a vector")
        size = weights.double().abs().sum(1)
        if not bool(((size > 0) & (size <= MAX_ROW_WEIGHT)).all()):
            raise ConfigError("weights", size.tolist(), "absolute row sums in (0, 4]")
        for one in sealed:
            one.expect(self.parameters, self.key_id, ("vector",))
            _check_alike(sealed[0], one)
        integers = whole(weights).numpy()
        rows: list[list[bytes]] = [[] for _ in range(weights.shape[0])]
        (prime,) = primes = self.lattice.primes(1)
        with Channel() as channel:
            # One chunk of every client at a time.
            for index in range(len(sealed[0].chunks)):
                words = np.stack([self._expanded(channel, one, index) for one in sealed])
                for row, mixed in zip(rows, _times(integers, words, prime), strict=True):
                    row.append(guard.pack(mixed, primes))
        return [
            self._sealed(sealed[0], "mix", len(sealed), float(s), tuple(row))
            for s, row in zip(size, rows, strict=True)
        ]

    def _load(self, channel: Channel, one: SealedVector, index: int) -> Any:
        """Chunk ``index`` as a SEAL ciphertext, every coefficient checked."""
        fresh, data = one.kind in ("vector", "head"), one.chunks[index]
        seed = data[-guard.SEED_BYTES :] if fresh else b""
        return self.lattice.ciphertext(channel, self._words(one, index), seed)

    def _words(self, one: SealedVector, index: int) -> guard.Words:
        polynomials = 1 if one.kind in ("vector", "head") else 2
        primes, degree = self.lattice.primes(level_of(one.kind)), self.parameters.degree
        try:
            return guard.unpack(one.chunks[index], primes, degree, polynomials)
        except guard.Malformed as error:
            raise ClientError(f"sealed: chunk {index}: {error}") from None

    def _expanded(self, channel: Channel, one: SealedVector, index: int) -> guard.Words:
        """Both polynomials [2, 1, N] of a fresh chunk."""
        return self.lattice.polynomials(channel, self._load(channel, one, index))

    def _add_to(self, total: Any, ciphertext: Any) -> None:
        try:
            self._evaluator.add_inplace(total, ciphertext)
        except (RuntimeError, ValueError) as error:  # SEAL refuses a sum that encrypts nothing
            raise ClientError(f"add: {error}") from None

    def _sealed(
        self, like: SealedVector, kind: str, terms: int, weight: float, chunks: tuple[bytes, ...]
    ) -> SealedVector:
        return new_sealed(
            self.parameters,
            self.key_id,
            kind=kind,
            size=like.size,
            range=like.range,
            terms=terms,
            weight=weight,
            chunks=chunks,
        )


def _check_alike(first: SealedVector, other: SealedVector) -> None:
    if (other.size, other.range) != (first.size, first.range):
        raise ClientError(
            f"sealed: size and range: got {other.size} in {other.range:g}, "
            f"takes {first.size} in {first.range:g} as the others have"
        )


def whole(weights: Tensor) -> Tensor:
    """Weights as ciphertexts are multiplied by them: integers in float64, where 2^21 * 4 times 2^28
    stays below 2^53."""
    integers: Tensor = (weights.double() * 2**WEIGHT_BITS).round()
    return integers


def _times(
    weights: npt.NDArray[np.float64], words: guard.Words, prime: int
) -> npt.NDArray[np.uint64]:
    """Integer weights [R, K] times coefficients [K, ..] below ``prime`` < 2^56, modulo it."""
    flat = words.reshape(len(words), -1)
    low = (weights @ (flat & ((1 << _HALF) - 1)).astype(np.float64)).astype(np.int64) % prime
    high = (weights @ (flat >> _HALF).astype(np.float64)).astype(np.int64) % prime
    for _ in range(_HALF // 7):  # 56 + 7 bits at a time
        high = (high << 7) % prime
    result: npt.NDArray[np.uint64] = ((high + low) % prime).astype(np.uint64)
    return result.reshape(len(weights), *words.shape[1:])
