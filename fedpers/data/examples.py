"""Examples as tensors, what a model reads of them, and one client's three splits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedpers.config import TaskSettings
from fedpers.data.scaling import Scaling
from fedpers.tasks.base import Task


@dataclass(frozen=True)
class Examples:
    """Inputs and their targets.

    Attributes:
        x: [n, ...] float32; for text int64 [n, 2, length]: token ids, then the attention mask;
            for a language model int64 [n, 3, length]: token ids, which are there, which are scored.
        y: [n, ...], as the task has them: int64, classes 0..C-1, or float32, numbers.
    """

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: torch.Tensor) -> Examples:
        """The examples at ``index`` ([m] int64), copied, in that order."""
        return Examples(self.x[index], self.y[index])

    def to(self, device: torch.device) -> Examples:
        """The examples on ``device``; these where they are there."""
        return Examples(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Signature:
    """What a model reads.

    Attributes:
        kind: "image" ([C, H, W]), "signal" ([C, T]), "tabular" ([d]), "text" ([2, length]) or
            "language" ([3, length]).
        shape: the shape of one example's ``x``.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Schema:
    """What one owner's data must be like to be learned together with others', once ``scaling`` was
    applied."""

    signature: Signature
    task: TaskSettings
    scaling: Scaling = field(default_factory=Scaling)

    def to_json(self) -> str:
        """One line of JSON; ``from_json`` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """What ``to_json`` wrote."""
        given = json.loads(text)
        kind, shape = given["signature"]["kind"], tuple(given["signature"]["shape"])
        task, scaling = TaskSettings(**given["task"]), Scaling.from_json(given["scaling"])
        return cls(Signature(kind, shape), task, scaling)


@dataclass(frozen=True)
class ClientData:
    """One client's examples; the three are disjoint and each may be empty."""

    train: Examples
    val: Examples
    test: Examples


@dataclass(frozen=True)
class Table:
    """All examples of a source, before anybody owns them; what a source returns.

    Attributes:
        kind: as in ``Signature``.
        examples: all of them, in the source's order; targets not scaled.
        client: [n] text, whose each example is by nature, or None.
        group: [n] text, which examples belong together (a recording, a text), or None.
        task: what the targets are, with names; None for what the settings make of them.
        columns: what the features of a table are called; "0", "1", ... if nothing is given.
        scaled: those, by number, that are on a scale that suits models already.
    """

    kind: str
    examples: Examples
    client: NDArray[np.str_] | None = None
    group: NDArray[np.str_] | None = None
    task: Task | None = None
    columns: tuple[str, ...] = ()
    scaled: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features of a table."""
        width = self.examples.x.shape[1] if self.kind == "tabular" else 0
        return self.columns or tuple(str(column) for column in range(width))

    @property
    def signature(self) -> Signature:
        """What a model reads of these examples."""
        return Signature(self.kind, tuple(self.examples.x.shape[1:]))
