"""Cells as numbers, dates and categories, however they are written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.data.cells import plain_number, to_days, to_numbers
from fedpers.errors import DataError


@pytest.mark.parametrize(
    ("cell", "decimal", "plain"),
    [
        ("1234.5", ".", "1234.5"),
        ("$1,234.50", ".", "1234.50"),
        ("-1,234,567", ".", "-1234567"),
        ("51.2 %", ".", "51.2"),
        ("1 234.5", ".", "1234.5"),
        ("1'234.5", ".", "1234.5"),
        ("1e-6", ".", "1e-6"),
        ("1,5", ",", "1.5"),
        ("€ 1.234.567,89", ",", "1234567.89"),
        ("-0,5%", ",", "-0.5"),
        ("1.5", ",", "1.5"),
        ("north", ".", "north"),
        ("1,23,4", ".", "1,23,4"),
    ],
)
def test_plain_numbers(cell: str, decimal: str, plain: str) -> None:
    assert plain_number(cell, decimal) == plain


@given(st.floats(-1e9, 1e9).map(lambda value: round(value, 3)))
def test_what_is_written_in_german_reads_as_it_was(value: float) -> None:
    text = f"{value:,.3f}".replace(",", "_").replace(".", ",").replace("_", ".")
    found = to_numbers([text], "t", decimal=",")
    assert found[0] == np.float32(value)


def test_words_that_stand_for_nothing() -> None:
    found = to_numbers(["1", "k.A.", "n/a", ""], "t: a", words={"k.A."})
    assert found[0] == 1 and np.isnan(found[1:]).all()
    with pytest.raises(DataError, match=r"got .k\.A\.. in row 1"):
        to_numbers(["1", "k.A."], "t: a")


def test_dates_are_days() -> None:
    found = to_days(["02.01.2000 12:00", "", "31.12.1999 00:00"], "%d.%m.%Y %H:%M", "t: d")
    assert found[0] == 1.5 and np.isnan(found[1]) and found[2] == -1
    assert to_days(["2000-01-03", "2000-01-01T06:00:00Z"], "ISO8601", "t: d").tolist() == [2, 0.25]
    with pytest.raises(DataError, match=r"t: d: got 'soon' in row 0 .*, takes a date written as"):
        to_days(["soon"], "ISO8601", "t: d")
    assert np.isnan(to_days(["soon"], "ISO8601", "t: d", told=False)).all()
