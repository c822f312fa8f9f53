"""SEAL under TenSEAL: contexts, and polynomials as numpy arrays in and out of them.

``tenseal.sealapi`` reads and writes SEAL's objects as files only; the files here are in memory
(Linux's memfd). What SEAL is given was written here from checked numbers, and what it wrote is
the only compressed stream that is read.
"""

from __future__ import annotations

import os
import struct
import sys
from types import TracebackType
from typing import Any

import numpy as np

from fedpers.channels.sealed.guard import SEED_BYTES, Words
from fedpers.channels.sealed.parameters import Parameters
from fedpers.errors import ConfigError, RunError

_HEADER = 16  # magic, header size, version (2), compression mode, reserved, total size
_ZSTD = 2
_ARRAY = _HEADER + 8
_CIPHERTEXT = 32 + 1 + 5 * 8 + _ARRAY  # parameters' id, flag, sizes and scale, the array's head
_PLAINTEXT = 32 + 2 * 8 + _ARRAY
_SEED = _HEADER + 1 + SEED_BYTES
_BLAKE2XB = 1


class Channel:
    """A file in memory that SEAL can open by its path, for one operation of one thread."""

    def __enter__(self) -> Channel:
        if sys.platform != "linux":
            raise ConfigError("encryption", sys.platform, "Linux: it passes SEAL files in memory")
        self._file = os.memfd_create("seal", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._file}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def write(self, data: bytes) -> str:
        """Replace the content; returns the path."""
        os.ftruncate(self._file, 0)
        if os.pwrite(self._file, data, 0) != len(data):
            raise RunError("encryption: no memory for a ciphertext; free some")
        return self.path

    def save(self, thing: Any) -> bytes:
        """What SEAL writes of ``thing``."""
        os.ftruncate(self._file, 0)
        thing.save(self.path)
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def content(self, thing: Any, size: int) -> bytes:
        """What SEAL writes of ``thing``, decompressed; it must give ``size`` bytes."""
        import pyarrow

        data = self.save(thing)
        if data[5] != _ZSTD:
            raise RunError(f"encryption: SEAL wrote compression mode {data[5]}, takes zstd")
        return pyarrow.decompress(  # type: ignore[no-any-return]
            data[_HEADER:], decompressed_size=size, codec="zstd", asbytes=True
        )


class Lattice:
    """SEAL's context for a parameter set. It holds no key.

    Raises:
        ConfigError: SEAL refuses the parameters.
    """

    def __init__(self, parameters: Parameters) -> None:
        from tenseal import sealapi

        parameters.check()
        self.parameters, self.seal = parameters, sealapi
        degree, bfv = parameters.degree, parameters.scheme == "bfv"
        scheme = sealapi.SCHEME_TYPE.BFV if bfv else sealapi.SCHEME_TYPE.CKKS
        given = sealapi.EncryptionParameters(scheme)
        given.set_poly_modulus_degree(degree)
        modulus = sealapi.CoeffModulus.Create(degree, list(parameters.bits))
        given.set_coeff_modulus(modulus)
        if bfv:
            given.set_plain_modulus(1 << parameters.plain_bits)
        self.context = sealapi.SEALContext(given, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            reason = self.context.parameters_error_message()
            raise ConfigError("encryption parameters", parameters.to_json(), reason)
        self._primes = tuple(int(prime.value()) for prime in modulus)
        with Channel() as channel:
            self._version = channel.save(given)[3:5]
        self.ids = {1: list(self.context.last_parms_id()), 2: list(self.context.first_parms_id())}

    def primes(self, level: int) -> tuple[int, ...]:
        """The moduli of a ciphertext under ``level`` primes, 1 or (three-prime sets) 2."""
        return self._primes[:level]

    def _wrap(self, body: bytes) -> bytes:
        """A SEAL stream around ``body``, not compressed."""
        return struct.pack("<HB2s", 0xA15E, _HEADER, self._version) + struct.pack(
            f"<BHQ{len(body)}s", 0, 0, _HEADER + len(body), body
        )

    def _array(self, words: Words) -> bytes:
        return self._wrap(struct.pack("<Q", words.size) + words.astype("<u8").tobytes())

    def ciphertext(self, channel: Channel, words: Words, seed: bytes, scale: float = 1.0) -> Any:
        """A SEAL ciphertext of two polynomials.

        Args:
            words: coefficients below their primes, [2, level, N], or [1, level, N] with a seed.
            seed: what the second polynomial is drawn from, or nothing.
            scale: of CKKS.
        """
        level = words.shape[1]
        numbers = struct.pack("<QQQdQ", 2, self.parameters.degree, level, scale, 1)
        in_ntt = b"\0" if self.parameters.scheme == "bfv" else b"\1"
        body = struct.pack("<4Q", *self.ids[level]) + in_ntt + numbers + self._array(words)
        if seed:
            body += self._wrap(bytes([_BLAKE2XB]) + seed)
        loaded = self.seal.Ciphertext()
        loaded.load(self.context, channel.write(self._wrap(body)))
        return loaded

    def polynomials(self, channel: Channel, ciphertext: Any) -> Words:
        """The coefficients [2, level, N] of a ciphertext."""
        level, degree = ciphertext.coeff_modulus_size(), self.parameters.degree
        content = channel.content(ciphertext, _CIPHERTEXT + 16 * level * degree)
        words: Words = np.frombuffer(content, "<u8", offset=_CIPHERTEXT)
        return words.reshape(2, level, degree)

    def fresh(self, channel: Channel, sealed: Any, level: int) -> tuple[Words, bytes]:
        """The first polynomial [1, level, N] of a symmetric encryption, and the second's seed."""
        degree = self.parameters.degree
        size = _CIPHERTEXT + 8 * level * degree + _SEED
        content = channel.content(sealed, size)
        if content[-1 - SEED_BYTES] != _BLAKE2XB:
            raise RunError("encryption: SEAL drew from another generator, takes Blake2xb")
        words: Words = np.frombuffer(content, "<u8", level * degree, _CIPHERTEXT)
        return words.reshape(1, level, degree), content[-SEED_BYTES:]

    def plaintext(self, channel: Channel, coefficients: Words) -> Any:
        """A BFV plaintext of these coefficients [N], each below the plain modulus."""
        head = bytes(32) + struct.pack("<Qd", coefficients.size, 1.0)
        loaded = self.seal.Plaintext()
        stream = self._wrap(head + self._array(coefficients))
        loaded.load(self.context, channel.write(stream))
        return loaded

    def coefficients(self, channel: Channel, plaintext: Any) -> Words:
        """The coefficients [N] of a plaintext; SEAL leaves out zeros at the end."""
        count = plaintext.coeff_count()
        words: Words = np.zeros(self.parameters.degree, np.uint64)
        content = channel.content(plaintext, _PLAINTEXT + 8 * count)
        words[:count] = np.frombuffer(content, "<u8", count, _PLAINTEXT)
        return words
