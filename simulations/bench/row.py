"""A comparison, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

Run = Callable[[], object]


class Row(NamedTuple):
    """A comparison: the usual way's time over ours is to reach ``target``."""

    name: str
    usual: str
    ours: str
    usual_seconds: float
    our_seconds: float
    target: float

    @property
    def ratio(self) -> float:
        """How many times as long the usual way takes."""
        return self.usual_seconds / self.our_seconds


def medians(
    runs: Sequence[Run], repeats: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """The median seconds of each, run by turns: of this process's computing, unless ``clock`` is
    another."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, own in zip(runs, seconds, strict=True):
            started = clock()
            run()
            if turn:  # the first warms up
                own.append(clock() - started)
    return [median(own) for own in seconds]


def by_turns(
    usual: Run, ours: Run, repeats: int, clock: Callable[[], float] = time.process_time
) -> tuple[float, float]:
    """``medians`` of the two sides of a row."""
    first, second = medians((usual, ours), repeats, clock)
    return first, second


@contextmanager
def folder_of_data() -> Iterator[Path]:
    """A folder for as long as a row is measured."""
    with TemporaryDirectory(prefix="fedpers-bench-") as folder:
        yield Path(folder)
