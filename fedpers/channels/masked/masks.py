"""Masks: streams of words that are added and taken away modulo 2^64, and words on the wire.

Bonawitz et al. 2017, section 4: y = x + sum over j > i of PRG(s_ij) - sum over j < i of
PRG(s_ij), and PRG(b_i) of the own seed. The generator is AES-256 in counter mode: what AES-GCM
makes of zeros under a key of its own, without the tags (the quickest door to it).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Words = npt.NDArray[np.uint64]

PIECE = 1 << 14  # words made at once: they stay in a core's cache
NONCE = 12
ZEROS = memoryview(bytes(8 * PIECE))
LANES = 8  # words that are packed together: as many bytes as they have bits
FEW = 256  # words that one long integer holds sooner


def add(words: Words, seed: bytes, sign: int) -> None:
    """Add (sign 1) or take away (sign -1) the mask of a seed, in place, modulo 2^64.

    Args:
        words: uint64 [n].
        seed: of one pair or client and one tag.
    """
    stream = AESGCM(hashlib.sha256(b"fedpers mask" + seed).digest())
    change = np.add if sign > 0 else np.subtract
    for at in range(0, len(words), PIECE):
        piece = words[at : at + PIECE]
        mask = stream.encrypt(at.to_bytes(NONCE, "big"), ZEROS[: piece.nbytes], None)
        change(piece, np.frombuffer(mask, "<u8", len(piece)), out=piece)


def pseudorandom(key: bytes, count: int) -> bytes:
    """The first ``count`` bytes of what a key, which is used for nothing else, is stretched to."""
    return AESGCM(key).encrypt(bytes(NONCE), bytes(count), None)[:count]


def side(client: str, other: str) -> int:
    """Of a pair's mask in the vector of ``client``: one of the two adds it, the other takes it
    away; a client's own mask is added."""
    return 1 if client <= other else -1


def packed(words: Words, bits: int) -> bytes:
    """The low ``bits`` bits of each word, one after the other."""
    if len(words) <= FEW or bits < LANES:
        return _joined((words & low(bits)).tolist(), bits, size(len(words), bits))
    lanes = np.zeros((-(-len(words) // LANES), LANES), np.uint64)
    lanes.reshape(-1)[: len(words)] = words
    lanes &= low(bits)
    found = np.zeros(len(lanes) * bits + 8, np.uint8)
    rows = _rows(found, len(lanes), bits)
    for lane in range(LANES):  # which starts within a byte, and ends in the ninth from there
        at, shift = divmod(lane * bits, 8)
        moved = lanes[:, lane] << np.uint64(shift)
        rows[:, at : at + 8] |= moved.astype("<u8").view(np.uint8).reshape(-1, 8)
        if shift + bits > 64:
            rows[:, at + 8] |= (lanes[:, lane] >> np.uint64(64 - shift)).astype(np.uint8)
    return found[: size(len(words), bits)].tobytes()


def _joined(values: list[int], bits: int, length: int) -> bytes:
    """The same for a few, two by two."""
    width = bits
    while len(values) > 1:
        above = [*values[1::2], *[0] * (len(values) % 2)]
        values = [one | other << width for one, other in zip(values[::2], above, strict=True)]
        width *= 2
    return values[0].to_bytes(length, "little")


def unpacked(data: bytes, count: int, bits: int) -> Words:
    """The words that ``packed`` was given, uint64 [count], modulo 2^bits."""
    if count <= FEW or bits < LANES:
        whole, mask = int.from_bytes(data, "little"), (1 << bits) - 1
        return np.array([whole >> at * bits & mask for at in range(count)], np.uint64)
    groups = -(-count // LANES)
    filled = np.zeros(groups * bits + 8, np.uint8)
    filled[: len(data)] = np.frombuffer(data, np.uint8)
    rows = _rows(filled, groups, bits)
    found = np.empty((groups, LANES), np.uint64)
    for lane in range(LANES):
        at, shift = divmod(lane * bits, 8)
        moved = np.ascontiguousarray(rows[:, at : at + 8]).view("<u8")[:, 0] >> np.uint64(shift)
        if shift + bits > 64:
            moved |= rows[:, at + 8].astype(np.uint64) << np.uint64(64 - shift)
        found[:, lane] = moved
    found &= low(bits)
    return found.reshape(-1)[:count]


def _rows(data: npt.NDArray[np.uint8], groups: int, bits: int) -> npt.NDArray[np.uint8]:
    """Bytes by groups of ``LANES`` words, each beside the eight that follow it."""
    return np.lib.stride_tricks.as_strided(data, (groups, bits + 8), (bits, 1))


def size(count: int, bits: int) -> int:
    """Bytes of ``count`` words of ``bits`` bits."""
    return (count * bits + 7) // 8


def low(bits: int) -> np.uint64:
    """A word whose low ``bits`` bits are set."""
    return np.uint64((1 << bits) - 1)
