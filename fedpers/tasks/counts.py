"""What a client reports of its classifications: counts only, of which every metric is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from fedpers.tasks.base import MODES, Tally
from fedpers.tasks.checks import MOST, check_count, check_modes, fields
from fedpers.tasks.detail import Detail

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Counts(Tally):
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

    @property
    def modes(self) -> Collection[str]:
        """The modes of ``correct``."""
        return self.correct

    def wins(self, mode: str, over: str) -> int:
        """How many examples ``mode`` has right and ``over`` wrong."""
        return self.broke[over] if mode == "global" else self.fixed[mode]

    def stakes(self, over: str) -> tuple[int, int]:
        """How many ``over`` has wrong, and how many right."""
        return self.n - self.correct[over], self.correct[over]

    def with_gated(self, mode: str) -> Self:
        """As ``mode``; the global model fixes and breaks nothing."""
        detail = self.detail
        if detail is not None:
            detail = replace(detail, modes={**detail.modes, "gated": detail.modes[mode]})
        return replace(
            self,
            correct={**self.correct, "gated": self.correct[mode]},
            fixed={**self.fixed, "gated": self.fixed.get(mode, 0)},
            broke={**self.broke, "gated": self.broke.get(mode, 0)},
            detail=detail,
        )

    def brief(self) -> Self:
        """Without ``detail``."""
        return replace(self, detail=None)

    def to_json(self) -> dict[str, Any]:
        """A JSON object, without a ``detail`` that is None; ``from_json`` reads it back."""
        counts = {"n": self.n, "correct": self.correct, "fixed": self.fixed, "broke": self.broke}
        return counts if self.detail is None else {**counts, "detail": self.detail.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or counts that cannot be.
        """
        given, detail = fields(data, "n", "correct", "fixed", "broke"), data.get("detail")
        return cls(**given, detail=None if detail is None else Detail.from_json(detail))
