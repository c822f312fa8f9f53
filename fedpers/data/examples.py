"""Examples as tensors, what task they make, and one client's three splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Inputs and their classes.

    Attributes:
        x: [n, ...] float32; for text int64 [n, 2, length]: token ids, then the attention mask.
        y: [n] int64, classes 0..C-1.
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
class Task:
    """What is to be learned.

    Attributes:
        kind: "image" ([C, H, W]), "signal" ([C, T]), "tabular" ([d]) or "text" ([2, length]).
        input_shape: the shape of one example's ``x``.
        num_classes: C >= 2.
    """

    kind: str
    input_shape: tuple[int, ...]
    num_classes: int


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
        kind: as in ``Task``.
        examples: all of them, in the source's order.
        client: [n] text, whose each example is by nature, or None.
        group: [n] text, which examples belong together (a recording, a text), or None.
        classes: C, where not every class need be there; None for as many as there are.
    """

    kind: str
    examples: Examples
    client: NDArray[np.str_] | None = None
    group: NDArray[np.str_] | None = None
    classes: int | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def task(self) -> Task:
        """The task that these examples make."""
        x, y = self.examples.x, self.examples.y
        return Task(self.kind, tuple(x.shape[1:]), self.classes or int(y.max()) + 1)
