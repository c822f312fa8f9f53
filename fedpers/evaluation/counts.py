"""What a client reports of an evaluation: counts only, from which every metric is computed."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("personal", "global", "gated", "local")
"""Which model predicts: the client's own, the server's, the gate's mixture of both, or one
trained on the client alone."""

MOST = 2**53
"""No count is larger; up to here floats are exact."""


@dataclass(frozen=True)
class Counts:
    """One client's predictions on one split, counted.

    Args:
        n: examples, >= 0.
        correct: by mode, how many were right; a mode that was not evaluated is absent.
        fixed: by mode except "global", right where the global model is wrong. Empty where the
            global model was not evaluated.
        broke: likewise, wrong where the global model is right.

    Raises:
        ValueError: the counts cannot come from predictions on n examples.
    """

    n: int
    correct: dict[str, int]
    fixed: dict[str, int]
    broke: dict[str, int]

    def __post_init__(self) -> None:
        _check_count("n", self.n, MOST)
        _check_modes("correct", self.correct, set(MODES), subset=True)
        for mode, right in self.correct.items():
            _check_count(f"correct.{mode}", right, self.n)
        compared = set(self.correct) - {"global"} if "global" in self.correct else set()
        _check_modes("fixed", self.fixed, compared)
        _check_modes("broke", self.broke, compared)
        for mode in compared:
            fixed, broke, base = self.fixed[mode], self.broke[mode], self.correct["global"]
            _check_count(f"fixed.{mode}", fixed, self.n - base)
            _check_count(f"broke.{mode}", broke, base)
            if self.correct[mode] != (net := base + fixed - broke):
                got = f"correct.{mode}: got {self.correct[mode]}"
                raise ValueError(f"{got}, takes global + fixed - broke = {net}")

    @classmethod
    def of(cls, labels: Tensor, predictions: Mapping[str, Tensor]) -> Counts:
        """Count predicted class ids [n], by mode, against ``labels`` [n], all on one device.

        Raises:
            ValueError: a shape differs from that of the labels, or an unknown mode.
        """
        right = {}
        for mode, predicted in predictions.items():
            if labels.ndim != 1 or predicted.shape != labels.shape:  # [n, 1] would broadcast
                got = f"{tuple(predicted.shape)} for labels {tuple(labels.shape)}"
                raise ValueError(f"predictions.{mode}: got {got}, takes [n] for labels [n]")
            right[mode] = predicted == labels
        fixed, broke = {}, {}
        if "global" in right:
            base = right["global"]
            for mode in [mode for mode in right if mode != "global"]:
                fixed[mode] = int((right[mode] & ~base).sum())
                broke[mode] = int((~right[mode] & base).sum())
        return cls(len(labels), {mode: int(r.sum()) for mode, r in right.items()}, fixed, broke)

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON object; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Counts:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or counts that cannot be.
        """
        return cls(**_fields(data, "n", "correct", "fixed", "broke"))


@dataclass(frozen=True)
class ClientResult:
    """One client's evaluation.

    Args:
        client: its id, not empty.
        train: its training examples, >= 0.
        val, test: the counts on its own splits.
        outside: the counts on other clients' data, or None where that was not evaluated.

    Raises:
        ValueError: an empty id or a negative count.
    """

    client: str
    train: int
    val: Counts
    test: Counts
    outside: Counts | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.client, str) or not self.client:
            raise ValueError(f"client: got {reprlib.repr(self.client)}, takes an id, as text")
        _check_count("train", self.train, MOST)

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> ClientResult:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or counts that cannot be.
        """
        given = _fields(data, "client", "train", "val", "test", "outside")
        outside = None if given["outside"] is None else Counts.from_json(given["outside"])
        val, test = Counts.from_json(given["val"]), Counts.from_json(given["test"])
        return cls(given["client"], given["train"], val, test, outside)


def _fields(data: Any, *names: str) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(name in data for name in names):
        raise ValueError(f"got {reprlib.repr(data)}, takes an object with {', '.join(names)}")
    return {name: data[name] for name in names}


def _check_count(name: str, got: Any, most: int) -> None:
    if type(got) is not int or not 0 <= got <= most:  # a bool is an int to isinstance
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes an integer in 0..{most}")


def _check_modes(name: str, got: Any, takes: set[str], *, subset: bool = False) -> None:
    if not isinstance(got, Mapping) or not (set(got) <= takes if subset else set(got) == takes):
        modes = ", ".join(sorted(takes)) or "no mode"
        raise ValueError(f"{name}: got {reprlib.repr(got)}, takes counts by mode: {modes}")
