"""Whose update spoils a sum: group tests with sums that are never too small."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.sealed.culprits import Sets, culprits


class Sums:
    """Sums that open if nobody bad is in them."""

    def __init__(self, bad: Sequence[str], least: int) -> None:
        self.bad, self.least, self.asked = set(bad), least, list[int]()

    def opens(self, sets: Sets) -> list[bool]:
        assert all(len(set(some)) == len(some) >= self.least for some in sets)
        self.asked.append(len(sets))
        return [not self.bad & set(some) for some in sets]


@given(
    count=st.integers(2, 40),
    least=st.integers(1, 4),
    bad=st.sets(st.integers(0, 39), min_size=1, max_size=5),
)
def test_who_is_named_is_to_blame_and_no_sum_is_too_small(
    count: int, least: int, bad: set[int]
) -> None:
    clients = [str(k) for k in range(count)]
    guilty = {str(k) for k in bad if k < count}
    if not guilty or count < least:
        return
    sums = Sums(list(guilty), least)
    named = culprits(clients, sums.opens, least)
    assert named in (None, guilty)
    if len(guilty) == 1 and count > least:
        assert named == guilty
    assert len(sums.asked) <= 8 + len(guilty)


@pytest.mark.parametrize(("count", "least"), [(3, 3), (2, 2)])
def test_a_sum_of_the_least_size_names_nobody(count: int, least: int) -> None:
    clients = [str(k) for k in range(count)]
    assert culprits(clients, Sums("0", least).opens, least) is None


def test_one_of_a_thousand_is_found_in_ten_exchanges() -> None:
    clients = [str(k) for k in range(1000)]
    sums = Sums(["77"], 3)
    assert culprits(clients, sums.opens, 3) == {"77"}
    assert len(sums.asked) <= 10 and sum(sums.asked) <= 25


def test_nobody_is_named_if_nobody_tells() -> None:
    assert culprits("abcd", lambda sets: None, 1) is None
