"""Cells of a table's columns as numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpers.errors import DataError

MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "-", "?"}
"""What stands for nothing in a column of numbers, in small letters."""

SIGNS = "$€£¥% \t\u00a0\u202f"
"""What may stand around a number: currencies, percent, spaces."""

_GROUPED = {
    ".": re.compile(r"[+-]?\d{1,3}([,'\u00a0\u202f ]\d{3})+(\.\d+)?"),
    ",": re.compile(r"[+-]?\d{1,3}([.'\u00a0\u202f ]\d{3})+(,\d+)?"),
}


def is_missing(cell: Any, words: Collection[str] = ()) -> bool:
    """Whether there is nothing in a cell.

    Args:
        words: that stand for nothing too.
    """
    if cell is None or cell != cell:
        return True
    text = str(cell).strip()
    return text.lower() in MISSING or text in words


def plain_number(cell: str, decimal: str = ".") -> str:
    """The text of a number as Python reads it: without currency or percent sign and without signs
    between thousands, with a decimal point; other text as it is.

    >>> plain_number("€ 1.234,5", ",")
    '1234.5'
    >>> plain_number("$1,234.50")
    '1234.50'
    """
    text = cell.strip(SIGNS)
    if _GROUPED[decimal].fullmatch(text):
        text = "".join(sign for sign in text if sign.isdigit() or sign in f"+-{decimal}")
    return text.replace(",", ".") if decimal == "," else text


def to_numbers(
    cells: Iterable[Any],
    where: str,
    *,
    told: bool = True,
    decimal: str = ".",
    words: Collection[str] = (),
) -> NDArray[np.float32]:
    """A numeric column, float32 [n], with NaN for what is missing.

    Args:
        told: refuse what is neither number nor missing, by its row; else it is missing.
        decimal: the sign before decimals.
        words: that stand for nothing, beside the usual ones.

    Raises:
        DataError: as ``told`` says.
    """
    import pandas as pd

    given = pd.Series(list(cells), dtype=object)

    def usable(cell: Any) -> Any:
        if isinstance(cell, str):
            return plain_number(cell, decimal)
        return None if isinstance(cell, list | dict) else cell

    with np.errstate(over="ignore"):
        numbers = pd.to_numeric(given.map(usable), errors="coerce")
        found = np.asarray(numbers.to_numpy(np.float32, na_value=np.nan), dtype=np.float32)
    for row in np.flatnonzero(np.isnan(found)) if told else ():
        if not is_missing(given[row], words):
            takes = "a number; name its values in data.columns.categories, or leave it out"
            raise DataError(f"{where}: got {given[row]!r} in row {row} (from 0), takes {takes}")
    return found


def to_days(
    cells: Iterable[Any], form: str, where: str, *, told: bool = True, words: Collection[str] = ()
) -> NDArray[np.float32]:
    """A column of dates and times as days since 2000, float32 [n], with NaN for what is missing.

    Args:
        form: how they are written, as ``strptime`` takes it, or ``ISO8601``.
        told, words: as for ``to_numbers``.

    Raises:
        DataError: as ``told`` says.
    """
    import pandas as pd

    given = [None if is_missing(cell, words) else str(cell).strip() for cell in cells]
    dates = pd.to_datetime(pd.Series(given, dtype=object), format=form, errors="coerce", utc=True)
    since = (dates - pd.Timestamp("2000-01-01", tz="UTC")).dt.total_seconds() / 86_400
    found = np.asarray(since.to_numpy(np.float32, na_value=np.nan), dtype=np.float32)
    for row in np.flatnonzero(np.isnan(found)) if told else ():
        if given[row] is not None:
            takes = f"a date written as {form}, as data.columns.dates says"
            raise DataError(f"{where}: got {given[row]!r} in row {row} (from 0), takes {takes}")
    return found


def one_hot(
    cells: Iterable[Any], known: Sequence[str], where: str, *, told: bool = True
) -> NDArray[np.float32]:
    """A column of categories as ones and zeros, float32 [n, number of categories]; only zeros where
    a cell is empty.

    Args:
        told: refuse a value that was not declared; else it is as if the cell was empty.

    Raises:
        DataError: as ``told`` says.
    """
    places = {value: place for place, value in enumerate(known)}
    given = list(cells)
    found = np.zeros((len(given), len(known)), dtype=np.float32)
    for row, cell in enumerate(given):
        place = places.get(str(cell))
        if place is not None:
            found[row, place] = 1
        elif told and not is_missing(cell):
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            takes = f"one of {shown}, as data.columns.categories says"
            raise DataError(f"{where}: got {str(cell)!r} in row {row} (from 0), takes {takes}")
    return found
