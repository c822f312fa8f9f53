"""Shares by hand, as a property, and what fewer of them tell."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.masked import shamir
from fedpers.channels.masked.shamir import BYTES, PRIME, elements, reduced

numbers = st.integers(0, PRIME - 1)


def row(values: Sequence[int]) -> bytes:
    """Numbers as they travel."""
    return b"".join(value.to_bytes(BYTES, "big") for value in values)


def split(secrets: Sequence[int], drawn: Sequence[Sequence[int]], points: int) -> list[list[int]]:
    """``shamir.split`` of numbers."""
    found = shamir.split(row(secrets), [row(one) for one in drawn], points)
    return [elements(data) for data in found]


def combine(shares: Mapping[int, Sequence[int]]) -> list[int]:
    """``shamir.combine`` of numbers."""
    return elements(shamir.combine({point: row(values) for point, values in shares.items()}))


def fits(shares: Mapping[int, Sequence[int]], point: int, share: Sequence[int]) -> bool:
    """``shamir.fits`` of numbers."""
    rows = {other: row(values) for other, values in shares.items()}
    return shamir.fits(rows, point, row(share))


def fresh(rows: int, secrets: int) -> list[list[int]]:
    return [elements(os.urandom(BYTES * secrets)) for _ in range(rows)]


def shared(secrets: list[int], points: int, threshold: int) -> list[list[int]]:
    """All shares, by point."""
    drawn = fresh(threshold - 1, len(secrets))
    return [*drawn, *split(secrets, drawn, points)]


def test_the_modulus_is_the_largest_prime_of_128_bits() -> None:
    def prime(n: int) -> bool:  # Miller and Rabin
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
            x = pow(base, odd, n)
            if x in (1, n - 1):
                continue
            if all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
                return False
        return True

    assert prime(PRIME) and not any(prime(n) for n in range(PRIME + 2, 2**128, 2))


def test_shares_by_hand() -> None:
    """5 + 3 x + 2 x^2 and 7 + x + 0 x^2 at 1 and 2, which are given, then at 3 and 4."""
    shares = split([5, 7], [[10, 8], [19, 9]], 4)
    assert shares == [[32, 10], [49, 11]]
    assert combine({1: [10, 8], 2: [19, 9], 4: shares[1]}) == [5, 7]


def test_with_a_threshold_of_one_each_share_is_the_secret() -> None:
    assert split([5], [], 2) == [[5], [5]]


@given(st.lists(numbers, min_size=1, max_size=5), st.data())
def test_any_threshold_of_shares_gives_the_secrets(secrets: list[int], data: st.DataObject) -> None:
    points = data.draw(st.integers(1, 40))
    threshold = data.draw(st.integers(1, points))
    shares = shared(secrets, points, threshold)
    chosen = data.draw(st.permutations(range(1, points + 1)))[:threshold]
    assert combine({point: shares[point - 1] for point in chosen}) == secrets
    assert combine({point: shares[point - 1] for point in range(1, points + 1)}) == secrets
    assert all(0 <= share < PRIME for one in shares for share in one)


@given(numbers, numbers, st.integers(2, 9))
def test_a_share_less_leaves_every_secret_possible(secret: int, guess: int, threshold: int) -> None:
    """For each guess there is a polynomial that gives the shares seen: they tell nothing."""
    shares = shared([secret], threshold, threshold)
    seen = {point: shares[point - 1] for point in range(1, threshold)}
    moved = {p - threshold: values for p, values in seen.items()}
    last = combine({0 - threshold: [guess], **moved})
    assert combine({**seen, threshold: last}) == [guess]


@given(st.integers(1, 9), st.integers(1, PRIME - 1))
def test_a_wrong_share_gives_a_wrong_secret_and_does_not_fit(point: int, error: int) -> None:
    shares = dict(enumerate(shared([5], 9, 4), 1))
    right = {p: shares[p] for p in shares if p != point}
    wrong = [(shares[point][0] + error) % PRIME]
    four = dict(list(right.items())[:3])
    assert combine({**four, point: wrong}) != [5]
    assert fits(dict(list(right.items())[:4]), point, shares[point])
    assert not fits(dict(list(right.items())[:4]), point, wrong)


@pytest.mark.parametrize(("points", "threshold"), [(1, 1), (99, 67), (431, 232)])
def test_values_side_by_side_do_not_run_into_each_other(points: int, threshold: int) -> None:
    """The largest values that there are, and the same secrets one by one."""
    drawn = [[PRIME - 1] * 3 for _ in range(threshold - 1)]
    found = split([PRIME - 1] * 3, drawn, points)
    assert found == [[PRIME - 1] * 3] * (points - threshold + 1)  # a constant
    mixed = [[PRIME - 1, 0, at] for at in range(threshold - 1)]
    found = split([0, PRIME - 1, 1], mixed, points)
    for place, secret in enumerate((0, PRIME - 1, 1)):
        single = split([secret], [[one[place]] for one in mixed], points)
        assert [one[place] for one in found] == [one[0] for one in single]


def test_bytes_become_elements() -> None:
    whole = bytes(15) + b"\x05" + PRIME.to_bytes(16, "big")
    assert elements(whole) == [5, 0] and reduced(whole) == row([5, 0])
