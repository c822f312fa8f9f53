"""A table's column as an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpers.errors import DataError


def column_of(values: Sequence[Any] | NDArray[Any], where: str) -> NDArray[Any]:
    """Values of one column as an array.

    Raises:
        DataError: lists of several lengths.
    """
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError(f"{where}: got lists, takes one value an example") from None
