"""Masks: streams of words that are added and taken away modulo 2^64, and words on the wire.

Bonawitz et al. 2017, section 4: y = x + sum over j > i of PRG(s_ij) - sum over j < i of
PRG(s_ij), and PRG(b_i) of the own seed. The generator is AES-256 in counter mode.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedpers.channels.masked.shamir import BYTES

Words = npt.NDArray[np.uint64]

PIECE = 1 << 14  # words made at once: they stay in a core's cache
ZEROS = bytes(8 * PIECE)
LANES = 64  # words that are packed together: as many words of their bits


def add(words: Words, seed: int, sign: int) -> None:
    """Add (sign 1) or take away (sign -1) the mask of a seed, in place, modulo 2^64.

    Args:
        words: uint64 [n].
        seed: of one pair or client and one tag, in the field of the shares.
    """
    key = hashlib.sha256(b"fedpers mask" + seed.to_bytes(BYTES, "big")).digest()
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()  # one key, one stream: counter from 0
    change = np.add if sign > 0 else np.subtract
    buffer = bytearray(8 * PIECE)
    mask = np.frombuffer(buffer, "<u8")
    for at in range(0, len(words), PIECE):
        piece = words[at : at + PIECE]
        stream.update_into(ZEROS[: piece.nbytes], buffer)
        change(piece, mask[: len(piece)], out=piece)


def side(client: str, other: str) -> int:
    """Of a pair's mask in the vector of ``client``: one of the two adds it, the other takes it
    away; a client's own mask is added."""
    return 1 if client <= other else -1


def packed(words: Words, bits: int) -> bytes:
    """The low ``bits`` bits of each word, one after the other."""
    groups = -(-len(words) // LANES)
    lanes = np.zeros(groups * LANES, np.uint64)
    lanes[: len(words)] = words & low(bits)
    columns = np.ascontiguousarray(lanes.reshape(groups, LANES).T)
    found = np.zeros((bits, groups), np.uint64)
    for lane in range(LANES):
        word, shift = divmod(lane * bits, 64)
        found[word] |= columns[lane] << np.uint64(shift)
        if shift + bits > 64:
            found[word + 1] |= columns[lane] >> np.uint64(64 - shift)
    data = np.ascontiguousarray(found.T).astype("<u8").tobytes()
    return data[: size(len(words), bits)]


def unpacked(data: bytes, count: int, bits: int) -> Words:
    """The words that ``packed`` was given, uint64 [count], modulo 2^bits."""
    groups = -(-count // LANES)
    whole = data + bytes(groups * bits * 8 - len(data))
    columns = np.ascontiguousarray(np.frombuffer(whole, "<u8").reshape(groups, bits).T)
    found = np.empty((LANES, groups), np.uint64)
    for lane in range(LANES):
        word, shift = divmod(lane * bits, 64)
        np.right_shift(columns[word], np.uint64(shift), out=found[lane])
        if shift + bits > 64:
            found[lane] |= columns[word + 1] << np.uint64(64 - shift)
    found &= low(bits)
    return np.ascontiguousarray(found.T).reshape(-1)[:count]


def size(count: int, bits: int) -> int:
    """Bytes of ``count`` words of ``bits`` bits."""
    return (count * bits + 7) // 8


def low(bits: int) -> np.uint64:
    """A word whose low ``bits`` bits are set."""
    return np.uint64((1 << bits) - 1)
