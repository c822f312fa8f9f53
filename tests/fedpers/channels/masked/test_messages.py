"""Bytes that are read in one way only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.identity.encoding import Refused, decode, encode
from fedpers.channels.masked.messages import Request, Shares, Upload
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.channels.masked.session import Terms

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


names = st.text(max_size=8)
data = st.binary(max_size=20)
LAYOUT = Layout([Field("body", 3, (-1, 1), 8)], 4)


@given(names, st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), st.lists(names), st.lists(data))
def test_terms_come_back(
    run: str, round_number: int, tag: int, cohort: list[str], given_: list[bytes]
) -> None:
    terms = Terms(run, round_number, tag, tuple(cohort), LAYOUT, tuple(given_))
    assert Terms.from_bytes(terms.to_bytes(), LAYOUT) == terms


@given(st.lists(names), st.dictionaries(names, data), st.dictionaries(names, data), data)
def test_the_other_messages_come_back(
    survivors: list[str], some: dict[str, bytes], others: dict[str, bytes], one: bytes
) -> None:
    request = Request(tuple(survivors), some, others)
    assert Request.from_bytes(request.to_bytes()) == request
    shares = Shares("me", one, some, one)
    assert Shares.from_bytes(shares.to_bytes()) == shares
    upload = Upload("me", one, one + b"1", one + b"2", one + b"3", one)
    assert Upload.from_bytes(upload.to_bytes()) == upload


@given(st.binary(max_size=60), st.integers(1, 5))
def test_any_bytes_are_a_message_or_refused(noise: bytes, count: int) -> None:
    for tried in (noise, encode(*[noise] * count), encode(*[encode(noise, noise)] * count)):
        for read in (Request.from_bytes, Shares.from_bytes, Upload.from_bytes):
            try:
                found = read(tried)
            except Refused:
                continue
            assert read(found.to_bytes()) == found
        try:
            Terms.from_bytes(tried, LAYOUT)
        except Refused:
            continue


@pytest.mark.parametrize("number", ["-1", "1.5", "", "x", "9" * 10, "\u0664"])
def test_a_tag_is_a_number_of_a_few_digits(number: str) -> None:
    with pytest.raises(Refused, match="up to nine digits"):
        Terms.from_bytes(encode("run", 0, number, b"", b""), LAYOUT)
