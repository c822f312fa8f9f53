"""What a model says of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of a forward pass; the rows of each tensor are the examples.

    Attributes:
        features: [batch, d], what the head reads.
        scores: [batch, ...], what the task reads: a classification's logits [batch, classes], a
            regression's predictions [batch, 1].
        extra: what a method's forward pass adds for its own loss, by name.
    """

    features: Tensor
    scores: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """The scores, as classification calls them."""
        return self.scores

    def each(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """The outputs with every tensor changed."""
        extra = {name: change(value) for name, value in self.extra.items()}
        return Outputs(change(self.features), change(self.scores), extra)

    def take(self, rows: Tensor | slice) -> Outputs:
        """The outputs of some examples: indices [m], or a slice."""
        return self.each(lambda value: value[rows])

    def float(self) -> Outputs:
        """The outputs in float32; extra integers stay integers."""
        return self.each(lambda value: value.float() if value.is_floating_point() else value)

    @staticmethod
    def cat(pieces: Sequence[Outputs]) -> Outputs:
        """The outputs of batches one after another."""
        extra = {name: torch.cat([p.extra[name] for p in pieces]) for name in pieces[0].extra}
        features = torch.cat([piece.features for piece in pieces])
        return Outputs(features, torch.cat([piece.scores for piece in pieces]), extra)
