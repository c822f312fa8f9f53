"""Bytes that are read in one way only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.masked.messages import Refused, decode, encode

pieces = st.lists(st.binary(max_size=20), max_size=6)


@given(pieces, pieces)
def test_pieces_come_back_and_other_pieces_give_other_bytes(
    one: list[bytes], two: list[bytes]
) -> None:
    assert decode(encode(*one), len(one), "it") == decode(encode(*one), None, "it") == one
    assert (encode(*one) == encode(*two)) == (one == two)


def test_by_hand() -> None:
    assert encode("ab", 12, b"") == b"\0\0\0\2ab\0\0\0\x0212\0\0\0\0"


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\1", b"\0\0\0\1ab", b"\xff\xff\xff\xffab", b""])
def test_what_does_not_end_with_its_last_piece_is_refused(data: bytes) -> None:
    with pytest.raises(Refused, match="it: got"):
        decode(data, 1, "it")
