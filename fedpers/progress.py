"""How far a long stretch of work is, in lines some seconds apart."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

log = logging.getLogger("fedpers")

EVERY = 10.0  # seconds


class Progress:
    """Says how much of a stretch is done, no more often than every ``every`` seconds; nothing of
    what takes less than that.

    Args:
        what: is done, in words ("round 3"), and
        total: of how many
        unit: things.
    """

    def __init__(self, what: str, total: int, unit: str = "clients", every: float = EVERY) -> None:
        self.what, self.total, self.unit, self.every = what, total, unit, every
        self._began = self._said = time.monotonic()

    def at(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if done < self.total and now - self._said >= self.every:
            self._said = now
            spent = f"{now - self._began:.0f} s"
            log.info("%s: %d of %d %s, %s", self.what, done, self.total, self.unit, spent)

    def steps(self, size: int) -> Iterator[int]:
        """Where each piece of so many begins: ``range(0, total, size)``."""
        for first in range(0, self.total, size):
            self.at(first)
            yield first
