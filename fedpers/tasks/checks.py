"""Checks of what a remote client sends: each refuses with a ValueError of one short line."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

MOST = 2**53
"""No count is larger; up to here floats are exact."""


def fields(data: Any, *names: str) -> dict[str, Any]:
    """The named entries of an object that must have all of them."""
    if not isinstance(data, Mapping) or not all(name in data for name in names):
        raise ValueError(f"got {reprlib.repr(data)}, takes an object with {', '.join(names)}")
    return {name: data[name] for name in names}


def check_count(name: str, got: Any, most: int) -> None:
    """An integer in 0..most."""
    if type(got) is not int or not 0 <= got <= most:  # a bool is an int to isinstance
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes an integer in 0..{most}")


def check_counts(name: str, got: Any, length: int, *, total: int | None = None) -> None:
    """A list of ``length`` counts, which sum to ``total`` if that is given."""
    if not isinstance(got, list) or len(got) != length:
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes a list of {length} counts")
    for count in got:
        check_count(name, count, MOST)
    if total is not None and sum(got) != total:
        raise ValueError(f"{name}: got a sum of {sum(got)}, takes counts that sum to {total}")


def check_between(name: str, got: Any, least: float, most: float) -> None:
    """A finite number in least..most, with a little slack for rounding."""
    slack = 1e-6 * (1 + most)
    # NaN, which no comparison holds for, is outside.
    if type(got) not in (int, float) or not least - slack <= got <= most + slack:
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes a number in {least}..{most}")


def check_sum(name: str, got: Any, most: float) -> None:
    """A number in 0..most."""
    if type(got) not in (int, float) or not 0 <= got <= most:
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes a number in 0..{most:g}")


def check_modes(name: str, got: Any, takes: set[str], *, subset: bool = False) -> None:
    """An object with an entry for each mode in ``takes``, or for some of them."""
    if not isinstance(got, Mapping) or not (set(got) <= takes if subset else set(got) == takes):
        modes = ", ".join(sorted(takes)) or "no mode"
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes counts by mode: {modes}")
