"""What arrives is checked here, before the library sees anything of it.

TenSEAL's own messages (protobuf around SEAL's compressed streams) are not safe to read from a
stranger: a flipped bit decrypts to garbage in silence, and a hand-made length reads past the heap.
So no such message is sent. A ciphertext travels as its numbers, at a fixed width each and of a
length that is known beforehand; the receiver checks each against its modulus and writes the
stream for SEAL itself. Every message that passes is thus a well-formed ciphertext. Whether it
holds what an honest client would have sent, nobody can tell: the receivers of a sum can only
check it against its range.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

SEED_BYTES = 64  # of SEAL's generator, from which the second polynomial of a fresh one follows
_DIGEST = 32
_MAX_HEADER = 4096
_MAX_CHUNKS = 1 << 20


class Malformed(ValueError):
    """Bytes that are not a message of ours; the text says why."""


def frame(magic: bytes, header: dict[str, Any], blobs: Sequence[bytes]) -> bytes:
    """A message: magic [8 bytes], the JSON header and each blob with their lengths, SHA-256."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    lengths = struct.pack(f"<II{len(blobs)}I", len(text), len(blobs), *map(len, blobs))
    body = b"".join((magic, lengths, text, *blobs))
    return body + hashlib.sha256(body).digest()


def unframe(magic: bytes, data: bytes) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """What ``frame`` put together.

    Raises:
        Malformed: any deviation, with the reason.
    """
    start = len(magic) + 8
    if len(data) < start + _DIGEST:
        raise Malformed(f"length: {len(data)} bytes, shorter than any message")
    if data[: len(magic)] != magic:
        raise Malformed(f"magic: {data[: len(magic)]!r}, takes {magic!r}")
    if hashlib.sha256(memoryview(data)[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise Malformed("digest: SHA-256 differs, the bytes were changed or cut")
    text_length, count = struct.unpack_from("<II", data, len(magic))
    if text_length > _MAX_HEADER or count > _MAX_CHUNKS:
        raise Malformed(f"length: a header of {text_length} bytes and {count} chunks")
    end = start + 4 * count
    if len(data) < end + text_length + _DIGEST:
        raise Malformed("length: shorter than its header says")
    lengths = struct.unpack_from(f"<{count}I", data, start)
    if end + text_length + sum(lengths) + _DIGEST != len(data):
        raise Malformed(f"length: {len(data)} bytes, its header says otherwise")
    header = _header(data[end : end + text_length])
    blobs, at = [], end + text_length
    for length in lengths:
        blobs.append(data[at : at + length])
        at += length
    return header, tuple(blobs)


def _header(text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    try:
        header = json.loads(text, object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"header: not JSON of ours ({error})") from None
    if not isinstance(header, dict):
        raise Malformed("header: not a JSON object")
    return header


def width(prime: int) -> int:
    """Bytes that a coefficient below ``prime`` takes."""
    return (prime.bit_length() + 7) // 8


def chunk_bytes(primes: Sequence[int], degree: int, polynomials: int, tail: int) -> int:
    """The one length that a chunk can have."""
    return polynomials * degree * sum(width(prime) for prime in primes) + tail


def pack(polynomials: Words, primes: Sequence[int]) -> bytes:
    """Coefficients [polynomials, primes, degree] at a fixed width for each prime."""
    pieces = []
    for polynomial in polynomials:
        for words, prime in zip(polynomial, primes, strict=True):
            octets = np.ascontiguousarray(words, dtype="<u8").view(np.uint8).reshape(-1, 8)
            pieces.append(octets[:, : width(prime)].tobytes())
    return b"".join(pieces)


def unpack(data: bytes, primes: Sequence[int], degree: int, polynomials: int) -> Words:
    """Coefficients [polynomials, primes, degree], each checked to be below its prime.

    Args:
        data: of the length ``chunk_bytes`` gives, or longer by the tail.

    Raises:
        Malformed: a coefficient is not below its prime.
    """
    octets = np.zeros((polynomials, len(primes), degree, 8), np.uint8)
    at = 0
    for polynomial in octets:
        for words, prime in zip(polynomial, primes, strict=True):
            count = degree * width(prime)
            piece = np.frombuffer(data, np.uint8, count, at)
            words[:, : width(prime)] = piece.reshape(degree, -1)
            at += count
    found: Words = octets.view("<u8")[..., 0]
    for index, prime in enumerate(primes):
        if int(found[:, index].max()) >= prime:
            raise Malformed(f"coefficient: {int(found[:, index].max())} is not below {prime}")
    return found
