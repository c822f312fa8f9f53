"""What a client reports of an evaluation: counts only, from which every metric is computed."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedpers.evaluation.checks import MOST as MOST
from fedpers.evaluation.checks import check_count, check_modes, fields
from fedpers.evaluation.detail import Detail

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("personal", "global", "gated", "local")
"""Which model predicts: the client's own, the server's, the gate's mixture of both, or one
trained on the client alone."""


@dataclass(frozen=True)
class Counts:
    """One client's predictions on one split, counted.

    Args:
        n: examples, >= 0.
        correct: by mode, how many were right; a mode that was not evaluated is absent.
        fixed: by mode except "global", right where the global model is wrong. Empty where the
            global model was not evaluated.
        broke: likewise, wrong where the global model is right.
        detail: counts by class and by confidence of the same modes, or None where they were not
            made. Metrics that need them leave such a client out.

    Raises:
        ValueError: the counts cannot come from predictions on n examples.
    """

    n: int
    correct: dict[str, int]
    fixed: dict[str, int]
    broke: dict[str, int]
    detail: Detail | None = None

    def __post_init__(self) -> None:
        check_count("n", self.n, MOST)
        check_modes("correct", self.correct, set(MODES), subset=True)
        for mode, right in self.correct.items():
            check_count(f"correct.{mode}", right, self.n)
        compared = set(self.correct) - {"global"} if "global" in self.correct else set()
        check_modes("fixed", self.fixed, compared)
        check_modes("broke", self.broke, compared)
        for mode in compared:
            fixed, broke, base = self.fixed[mode], self.broke[mode], self.correct["global"]
            check_count(f"fixed.{mode}", fixed, self.n - base)
            check_count(f"broke.{mode}", broke, base)
            if self.correct[mode] != (net := base + fixed - broke):
                got = f"correct.{mode}: got {self.correct[mode]}"
                raise ValueError(f"{got}, takes global + fixed - broke = {net}")
        if self.detail is not None:
            self.detail.check(self.n, self.correct)

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

    @classmethod
    def of_logits(
        cls, labels: Tensor, logits: Mapping[str, Tensor], *, detail: bool = True
    ) -> Counts:
        """Count logits [n, classes], by mode, against ``labels`` [n], all on one device.

        Args:
            detail: count by class and by confidence too.

        Raises:
            ValueError: as for ``of``.
        """
        counts = cls.of(labels, {mode: scores.argmax(dim=1) for mode, scores in logits.items()})
        return replace(counts, detail=Detail.of(labels, logits)) if detail else counts

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without a ``detail`` that is None; ``from_json`` reads it back."""
        counts = {"n": self.n, "correct": self.correct, "fixed": self.fixed, "broke": self.broke}
        return counts if self.detail is None else {**counts, "detail": self.detail.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Counts:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or counts that cannot be.
        """
        given, detail = fields(data, "n", "correct", "fixed", "broke"), data.get("detail")
        return cls(**given, detail=None if detail is None else Detail.from_json(detail))


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
    def from_json(cls, data: Any) -> ClientResult:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or counts that cannot be.
        """
        given = fields(data, "client", "train", "val", "test", "outside")
        outside = None if given["outside"] is None else Counts.from_json(given["outside"])
        val, test = Counts.from_json(given["val"]), Counts.from_json(given["test"])
        return cls(given["client"], given["train"], val, test, outside)
