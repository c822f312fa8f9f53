"""Streams and packing."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.masked.masks import (
    PIECE,
    add,
    low,
    packed,
    pseudorandom,
    side,
    size,
    unpacked,
)


def seed(number: int) -> bytes:
    return number.to_bytes(16, "big")


words = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=600)


@pytest.mark.parametrize("count", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_a_mask_is_the_key_stream_of_its_seed(count: int) -> None:
    """AES-256 in counter mode, as another door to it gives it, anew from each piece on."""
    key = AES(hashlib.sha256(b"fedpers mask" + seed(7)).digest())
    stream = b""
    for at in range(0, count, PIECE):
        start = at.to_bytes(12, "big") + (2).to_bytes(4, "big")  # AES-GCM keeps 1 for its tag
        stream += Cipher(key, CTR(start)).encryptor().update(bytes(8 * min(PIECE, count - at)))
    found = np.zeros(count, np.uint64)
    add(found, seed(7), 1)
    assert found.tobytes() == stream
    add(found, seed(7), -1)
    assert not found.any()


def test_masks_wrap_around() -> None:
    start = np.full(100, 2**64 - 1, np.uint64)
    found = start.copy()
    for number in (1, 2, 3):
        add(found, seed(number), 1)
    for number in (3, 1, 2):
        add(found, seed(number), -1)
    assert (found == start).all()


def test_seeds_that_differ_by_one_have_nothing_in_common() -> None:
    one, two = np.zeros(4096, np.uint64), np.zeros(4096, np.uint64)
    add(one, seed(1), 1)
    add(two, seed(2), 1)
    ones = np.unpackbits((one ^ two).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / (64 * 4096) ** 0.5


def test_what_is_stretched_less_is_the_beginning_of_what_is_stretched_more() -> None:
    key = bytes(range(32))
    assert len(pseudorandom(key, 333)) == 333
    assert pseudorandom(key, 333)[:32] == pseudorandom(key, 32) != bytes(32)


def test_one_of_a_pair_adds_and_the_other_takes_away() -> None:
    assert (side("a", "b"), side("b", "a"), side("a", "a")) == (1, -1, 1)


def test_packing_by_hand() -> None:
    """1, 2 and 3 in 5 bits each, the first lowest: 00011 00010 00001."""
    assert packed(np.array([1, 2, 3], np.uint64), 5) == (0b00011_00010_00001).to_bytes(2, "little")
    assert packed(np.array([33], np.uint64), 5) == b"\x01"  # modulo 2^5


@given(words, st.integers(1, 64))
def test_packed_words_come_back_modulo_their_bits(values: list[int], bits: int) -> None:
    given_words = np.array(values, np.uint64)
    data = packed(given_words, bits)
    assert len(data) == size(len(values), bits) == (len(values) * bits + 7) // 8
    whole = sum((value % 2**bits) << (at * bits) for at, value in enumerate(values))
    assert int.from_bytes(data, "little") == whole
    assert (unpacked(data, len(values), bits) == given_words & low(bits)).all()


def test_a_million_values_are_masked_for_twenty_neighbours_in_a_moment() -> None:
    found = np.zeros(333_334, np.uint64)  # 17 bits a value, three to a word
    start = time.process_time()
    for number in range(21):
        add(found, seed(number), 1)
    assert time.process_time() - start < 1.0  # 0.02 on the machine it was written on
