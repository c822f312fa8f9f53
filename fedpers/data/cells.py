"""Cells of a table's columns as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpers.errors import DataError

MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "-", "?"}
"""What stands for nothing in a column of numbers, in small letters."""


def is_missing(cell: Any) -> bool:
    """Whether there is nothing in a cell."""
    return cell is None or cell != cell or str(cell).strip().lower() in MISSING


def to_numbers(cells: Iterable[Any], where: str, *, told: bool = True) -> NDArray[np.float32]:
    """A numeric column, float32 [n], with NaN for what is missing.

    Args:
        told: refuse what is neither number nor missing, by its row; else it is missing.

    Raises:
        DataError: as ``told`` says.
    """
    import pandas as pd

    given = pd.Series(list(cells), dtype=object)
    usable = given.map(lambda cell: None if isinstance(cell, list | dict) else cell)
    with np.errstate(over="ignore"):
        numbers = pd.to_numeric(usable, errors="coerce").to_numpy(np.float32, na_value=np.nan)
    found = np.asarray(numbers, dtype=np.float32)
    for row in np.flatnonzero(np.isnan(found)) if told else ():
        if not is_missing(given[row]):
            takes = "a number; name its values in data.columns.categories, or leave it out"
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
