"""Classification: one of C classes for each example, by logits and cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedpers.config import Columns, TaskSettings
from fedpers.errors import DataError
from fedpers.outputs import Outputs
from fedpers.tasks import class_metrics
from fedpers.tasks.base import TASKS, Metric, Task
from fedpers.tasks.columns import column_of
from fedpers.tasks.counts import Counts


@dataclass
class ClassificationParams:
    """``names`` of the classes by number, where the data do not say them."""

    names: list[str] = field(default_factory=list)


@TASKS.register("classification")
class Classification(Task):
    """Targets are classes 0..C-1, int64 [n]; scores are logits [n, C].

    A model wins an example from another where it is right and the other is wrong.

    Args:
        names: of the C >= 2 classes.
    """

    Params = ClassificationParams
    tally_type = Counts
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric(
            label="accuracy",
            of=class_metrics.accuracy,
            less=class_metrics.accuracy_less,
            told="is right on {} of",
        ),
        "macro_f1": Metric(
            label="macro-F1",
            of=class_metrics.macro_f1,
            meaning="of each class, rare ones too, how much is found and how much of what is said "
            "to be of it is (F1); the mean over a client’s classes",
        ),
        "ece": Metric(
            label="ECE",
            of=class_metrics.ece,
            better="lower",
            compared=False,
            pools=True,
            meaning="the calibration error: how far the confidence of answers is from how often "
            "they are right; all clients together",
        ),
        "auc": Metric(
            label="AUC",
            of=class_metrics.auc,
            meaning="how often an example of a class scores higher on it than one of another class",
        ),
    }

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @classmethod
    def numbered(cls, classes: int) -> Self:
        """With classes that have no other names than their numbers."""
        return cls([str(number) for number in range(classes)])

    @classmethod
    def encode(
        cls,
        values: Sequence[Any] | NDArray[Any],
        where: str,
        columns: Columns,
        params: ClassificationParams,
    ) -> tuple[Self, Tensor]:
        """Integers (or booleans) are classes as they are, text by its place when sorted, or among
        the names that are given. Where names or ``columns.classes`` are given, not every class need
        be there."""
        labels = column_of(values, where)
        if labels.dtype.kind == "f" and params.names and np.array_equal(labels, labels.round()):
            labels = labels.astype(np.int64)  # 1.0 and 2.0, as some programs write classes
        if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "biuU":
            got = f"{labels.dtype} of shape {labels.shape}"
            takes = "one class an example, an integer or text"
            cure = "; for numbers to predict set task.name=regression"
            cure = cure if labels.dtype.kind == "f" and labels.ndim == 1 else ""
            raise DataError(f"{where}: got {got}, takes {takes}{cure}")
        integers = labels.dtype.kind in "biu"
        given = cls(params.names) if params.names else None
        if given is None and columns.classes is not None:
            given = cls.numbered(columns.classes)
        if given is not None:
            return given, given._among(labels, where, integers)
        classes, numbers = np.unique(labels, return_inverse=True)
        if integers and not np.array_equal(classes, np.arange(len(classes))):
            got = ", ".join(str(c) for c in classes[:8]) + (", ..." if len(classes) > 8 else "")
            takes = "0, 1, ..., C-1 without gaps"
            raise DataError(f"{where}: got classes {got}, takes {takes}; number them from 0")
        if len(classes) < 2:
            raise DataError(f"{where}: got the one class {classes[0]}, takes at least two classes")
        return cls([str(c) for c in classes]), torch.from_numpy(numbers.astype(np.int64))

    def _among(self, labels: NDArray[Any], where: str, integers: bool) -> Tensor:
        numbers = {name: number for number, name in enumerate(self.names)}
        if not integers and not set(numbers) & set(labels.tolist()):
            got = f"{labels.dtype} such as {labels[0]}"
            raise DataError(f"{where}: got {got}, takes {self._takes}")
        if integers and not all(name.lstrip("-").isdecimal() for name in self.names):
            found = labels  # by number; else integers are the classes' names: 1, 2 or -1, 1
        else:
            found = np.array([numbers.get(str(x), -1) for x in labels.tolist()])
        wrong = labels[(found < 0) | (found >= len(self.names))]
        if len(wrong):
            got = f"{labels.dtype} such as {wrong[0]}"
            raise DataError(f"{where}: got {got}, takes {self._takes}")
        return torch.from_numpy(found.astype(np.int64))

    @property
    def _takes(self) -> str:
        takes = f"integers in 0..{len(self.names) - 1}"
        if all(name.lstrip("-").isdecimal() for name in self.names) and self.names[0] != "0":
            return f"one of {', '.join(self.names[:8])}"
        named = [name for number, name in enumerate(self.names) if name != str(number)]
        shown = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
        return f"{takes} or {shown}" if named else takes

    @classmethod
    def of(cls, targets: Tensor, params: ClassificationParams) -> Self:
        """As many classes as there are, or as are named."""
        if targets.is_floating_point() or targets.ndim != 1:
            got = f"{targets.dtype} of shape {tuple(targets.shape)}"
            cure = "for numbers to predict set task.name=regression"
            raise DataError(f"data: y: got {got}, takes one class an example, int64; {cure}")
        classes = int(targets.max()) + 1
        if not params.names:
            return cls.numbered(classes)
        if classes > len(params.names):
            takes = f"integers in 0..{len(params.names) - 1}, as task.params.names says"
            raise DataError(f"data: y: got class {classes - 1}, takes {takes}")
        return cls(params.names)

    def strata(self, targets: Tensor) -> Tensor:
        """The classes."""
        return targets

    def settings(self) -> TaskSettings:
        """With the names."""
        return TaskSettings(TASKS.name_of(type(self)), {"names": list(self.names)})

    @property
    def described(self) -> str:
        """How many classes."""
        return f"{len(self.names)} classes"

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.names)

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs.scores, targets, reduction="none")

    def divergence(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """KL(softmax(teacher) || softmax(scores)), the mean over examples."""
        student, aim = F.log_softmax(scores, dim=1), F.log_softmax(teacher, dim=1)
        return F.kl_div(student, aim, reduction="batchmean", log_target=True)

    def made_up(self, count: int, generator: torch.Generator) -> Tensor:
        """Random classes."""
        return torch.randint(len(self.names), (count,), generator=generator)

    def tally(
        self, scores: Mapping[str, Tensor], targets: Tensor, *, detail: bool = True
    ) -> Counts:
        """Counts of right and wrong answers; with detail by class and by confidence too."""
        return Counts.of_logits(targets, scores, detail=detail)

    def confidence(self, scores: Tensor, targets: Tensor) -> Tensor:
        """log p - log(1 - p) of the right class (Carlini et al. 2022, 2112.03570)."""
        own = scores.gather(1, targets[:, None])
        others = scores.scatter(1, targets[:, None], float("-inf")).logsumexp(1)
        return own[:, 0] - others

    def read(self, scores: Tensor) -> list[str]:
        """The most probable class, and its probability."""
        sure, classes = scores.softmax(dim=1).max(dim=1)
        pairs = zip(classes.tolist(), sure.tolist(), strict=True)
        return [f"{self.names[number]} ({probability:.3f})" for number, probability in pairs]

    @property
    def reading(self) -> str:
        """Class and probability."""
        return "class (probability)"

    @classmethod
    def further(cls, results: Mapping[str, Sequence[Counts]]) -> dict[str, Any]:
        """Whether models answer with few classes only."""
        return {"collapse": {mode: class_metrics.collapse(results[mode], mode) for mode in results}}

    @classmethod
    def make_up(cls, tally: Counts) -> list[int] | None:
        """The examples of each class."""
        return None if tally.detail is None else tally.detail.labelled


def cross_entropy(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
    """Cross-entropy as the loss of a phase, [batch]."""
    return F.cross_entropy(outputs.scores, labels, reduction="none")
