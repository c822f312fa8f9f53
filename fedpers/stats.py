"""Numbers that a method's clients report beside their updates, within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Stat:
    """One number of a client's report, or of its answer to a poll.

    Attributes:
        name: by which the server finds it, in ``report["method"]``.
        low, high: between which it lies: what is beyond is clipped to them.

    Raises:
        ValueError: no range.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"stat {self.name!r}: got {self.low}..{self.high}, takes low < high")

    def clipped(self, value: float) -> float:
        """The nearest number within the bounds."""
        return min(max(value, self.low), self.high)


def readable(told: Any, stats: Sequence[Stat]) -> bool:
    """Whether what a client told is a number within its bounds for each stat, and nothing else."""
    return (
        isinstance(told, Mapping)
        and {*told} == {stat.name for stat in stats}
        and all(
            type(told[s.name]) in (int, float) and s.low <= told[s.name] <= s.high for s in stats
        )
    )
