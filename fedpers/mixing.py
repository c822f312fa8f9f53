"""W: which mixtures of the clients' updates to make, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """Which mixtures of the clients' updates to make, and for whom.

    Attributes:
        weights: W [R, K]; rows sum to 1, columns are the round's clients in order.
        recipients: for each row the client it is for, or None for the global parts.
        parts: a W [R, K] of their own for some parts, by name. Where an update lacks a part (a copy
            in a bank that its client did not train) its column counts for nothing, and rows need
            not sum to 1: they are divided by what is left.
    """

    weights: Tensor
    recipients: Sequence[str | None] = (None,)
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def equal(cls, clients: int) -> Mixing:
        """One row for the global parts, every client's weight the same."""
        return cls(torch.full((1, clients), 1 / max(clients, 1)))
