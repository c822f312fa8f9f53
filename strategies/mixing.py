"""W: which mixtures of the clients' updates to make, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """Which mixtures of the clients' updates to make, and for whom.

    Attributes:
        weights: W [R, K]; rows sum to 1, columns are the round's clients in order.
        recipients: for each row the client it is for, or None for the global parts.
    """

    weights: Tensor
    recipients: Sequence[str | None] = (None,)

    @classmethod
    def equal(cls, clients: int) -> Mixing:
        """One row for the global parts, every client's weight the same."""
        return cls(torch.full((1, clients), 1 / clients))
