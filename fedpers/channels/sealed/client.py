"""What the schemes' clients share: encryption under the secret key, and decryption."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpers.channels.sealed import guard
from fedpers.channels.sealed.cipher import (
    ClientCipher,
    SealedVector,
    check_values,
    level_of,
    new_sealed,
)
from fedpers.channels.sealed.lattice import Channel, Lattice
from fedpers.channels.sealed.parameters import Parameters
from fedpers.channels.sealed.tags import Tags
from fedpers.errors import ClientError, ConfigError
from fedpers.privacy.noise import Source


class SealClient(ClientCipher):
    """A client under SEAL.

    Encryption is symmetric: it is faster than with the public key, its noise is less, and the
    second polynomial, random and public, is sent as the seed that it follows from. That halves
    what a client sends.

    Args:
        parameters: the scheme's.
        key_id: of the key.
        secret: the secret key, as SEAL saved it.
    """

    def __init__(self, parameters: Parameters, key_id: str, secret: bytes) -> None:
        self.parameters, self.key_id = parameters, key_id
        self.lattice = Lattice(parameters)
        seal, context = self.lattice.seal, self.lattice.context
        key = seal.SecretKey()
        with Channel() as channel:
            key.load(context, channel.write(secret))
        self.tags = Tags(secret, self.lattice.primes(1)[0])
        self._encryptor, self._decryptor = (
            seal.Encryptor(context, key),
            seal.Decryptor(context, key),
        )

    def seal(self, vector: Tensor, *, range: float, source: Source) -> SealedVector:
        vector = vector.detach().cpu()
        check_values(vector, range)
        size = self.parameters.chunk
        with Channel() as channel:
            chunks = []
            for piece in torch.split(vector, size):
                plain = self._encode(channel, piece.double() / range, source)
                chunks.append(self._encrypt(channel, plain, "vector"))
        return self._fresh("vector", vector.numel(), range, chunks)

    def seal_unit(self, vector: Tensor) -> SealedVector:
        raise self._cannot()

    def open_unit(self, sealed: SealedVector) -> Tensor:
        raise self._cannot()

    def tag(self, sealed: SealedVector, said: bytes) -> bytes:
        sealed.expect(self.parameters, self.key_id, ("vector",))
        with Channel() as channel:
            return self.tags.of(self._polynomials(channel, sealed), said)

    def fit(self, sealed: SealedVector, terms: Sequence[tuple[bytes, bytes, int]]) -> bool:
        sealed.expect(self.parameters, self.key_id, ("sum", "mix"))
        with Channel() as channel:
            return self.tags.fit(self._polynomials(channel, sealed), terms)

    def _polynomials(self, channel: Channel, sealed: SealedVector) -> Iterator[guard.Words]:
        """Both polynomials [2, 1, N] of each chunk."""
        for index in range(len(sealed.chunks)):
            words, seed = self._words(sealed, index)
            if seed:
                ciphertext = self.lattice.ciphertext(channel, words, seed)
                words = self.lattice.polynomials(channel, ciphertext)
            yield words

    @abstractmethod
    def _encode(self, channel: Channel, values: Tensor, source: Source) -> Any:
        """A SEAL plaintext of at most a chunk of values in [-1, 1]."""

    def _encrypt(self, channel: Channel, plain: Any, kind: str) -> bytes:
        level = level_of(kind)
        encrypted = self._encryptor.encrypt_symmetric(plain)
        words, seed = self.lattice.fresh(channel, encrypted, level)
        return guard.pack(words, self.lattice.primes(level)) + seed

    def _fresh(self, kind: str, size: int, range: float, chunks: list[bytes]) -> SealedVector:
        return new_sealed(
            self.parameters,
            self.key_id,
            kind=kind,
            size=size,
            range=float(range),
            terms=1,
            weight=1.0,
            chunks=tuple(chunks),
        )

    def _decrypt(
        self, channel: Channel, sealed: SealedVector, index: int, scale: float = 1.0
    ) -> Any:
        """The SEAL plaintext of a chunk."""
        words, seed = self._words(sealed, index)
        plain = self.lattice.seal.Plaintext()
        try:
            ciphertext = self.lattice.ciphertext(channel, words, seed, scale)
            self._decryptor.decrypt(ciphertext, plain)
        except (RuntimeError, ValueError) as error:
            raise ClientError(f"open: {error}") from None
        return plain

    def _words(self, sealed: SealedVector, index: int) -> tuple[guard.Words, bytes]:
        """A chunk's coefficients, and the seed of the second polynomial of a fresh one."""
        fresh, data = sealed.kind in ("vector", "head"), sealed.chunks[index]
        primes = self.lattice.primes(level_of(sealed.kind))
        try:
            words = guard.unpack(data, primes, self.parameters.degree, 1 if fresh else 2)
        except guard.Malformed as error:
            raise ClientError(f"sealed: chunk {index}: {error}") from None
        return words, data[-guard.SEED_BYTES :] if fresh else b""

    def _cannot(self) -> ConfigError:
        scheme = self.parameters.scheme
        return ConfigError("encryption.scheme", scheme, "ckks-rows for unit vectors", "new keys")


def padded(values: Tensor, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Values as float64 with zeros up to ``size``."""
    full = np.zeros(size)
    full[: values.numel()] = values.numpy()
    return full
