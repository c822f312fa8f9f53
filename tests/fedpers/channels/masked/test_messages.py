"""Bytes that are read in one way only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.identity.encoding import Refused, decode, encode, table, untable
from fedpers.channels.masked.messages import Shares, Upload, summed, unsummed
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


@given(st.dictionaries(names, data), data)
def test_the_other_messages_come_back(some: dict[str, bytes], one: bytes) -> None:
    assert untable(table(some), "it") == some
    shares = Shares("me", one, some)
    assert Shares.from_bytes(shares.to_bytes()) == shares
    upload = Upload("me", one, one + b"1", one + b"2", one + b"3")
    assert Upload.from_bytes(upload.to_bytes()) == upload


@given(data, st.integers(0, 255), st.integers(1, 255))
def test_a_byte_that_changed_on_its_way_is_seen(sent: bytes, place: int, error: int) -> None:
    whole = bytearray(summed(sent))
    assert unsummed(bytes(whole), "it") == sent
    whole[place % len(whole)] ^= error
    with pytest.raises(Refused, match=r"it: got .* cut or changed on their way"):
        unsummed(bytes(whole), "it")


@given(st.binary(max_size=60), st.integers(1, 5))
def test_any_bytes_are_a_message_or_refused(noise: bytes, count: int) -> None:
    for tried in (noise, encode(*[noise] * count), encode(*[encode(noise, noise)] * count)):
        for sent in (tried, summed(tried)):
            for read in (Shares.from_bytes, Upload.from_bytes):
                try:
                    found = read(sent)
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
