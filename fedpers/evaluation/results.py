"""One client's evaluation: tallies of its models' predictions on its own data and on others'."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

from fedpers.tasks.base import Tally
from fedpers.tasks.checks import MOST, check_count, fields


@dataclass(frozen=True)
class ClientResult:
    """One client's evaluation.

    Args:
        client: its id, not empty.
        train: its training examples, >= 0.
        val, test: the tallies on its own splits.
        outside: the tally on other clients' data, or None where that was not evaluated.

    Raises:
        ValueError: an empty id or a negative count.
    """

    client: str
    train: int
    val: Tally
    test: Tally
    outside: Tally | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.client, str) or not self.client:
            raise ValueError(f"client: got {reprlib.repr(self.client)}, takes an id, as text")
        check_count("train", self.train, MOST)

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object; ``from_json`` reads it back."""
        return {
            "client": self.client,
            "train": self.train,
            "val": self.val.to_json(),
            "test": self.test.to_json(),
            "outside": None if self.outside is None else self.outside.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any, tally: type[Tally]) -> ClientResult:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Args:
            tally: of the run's task.

        Raises:
            ValueError: not such an object, or tallies that cannot be.
        """
        given = fields(data, "client", "train", "val", "test", "outside")
        outside = None if given["outside"] is None else tally.from_json(given["outside"])
        val, test = tally.from_json(given["val"]), tally.from_json(given["test"])
        return cls(given["client"], given["train"], val, test, outside)
