"""Settings that are chosen for all clients by pooled validation losses: which there are.

Client and server know the same grids; clients say what each setting loses on validation examples,
and the sum decides. The loss of a population is far less noisy than its right answers, and than
anything that one client could choose by.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import ceil

import torch
from torch import Tensor

from fedpers.parts import Part, Parts

EPOCHS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 50)
PACE = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
SHARES = (0.0, 0.25, 0.5, 1.0)
MOST_LOSS = 8.0  # of an example: one that is very wrong does not decide for all
CHOSEN = "chosen"


def epochs(most: int) -> tuple[int, ...]:
    """How many epochs of fine-tuning to choose from: up to ``most``, 0 among them."""
    return (*(e for e in EPOCHS if e < most), most)


def stretches(most: int) -> list[int]:
    """The epochs from one of ``epochs`` to the next."""
    return [b - a for a, b in pairwise(epochs(most))]


def rounds(most: int) -> tuple[int, ...]:
    """After which rounds a model that is trained alone is kept, to choose from."""
    return tuple(sorted({ceil(share * most) for share in PACE}))


def mixtures(models: int) -> list[tuple[float, ...]]:
    """Weights of as many models' log-probabilities; the first model alone is the first."""
    found = [w for w in product(SHARES, repeat=models) if any(w)]
    first = (1.0, *[0.0] * (models - 1))
    return [first, *(w for w in found if w != first)]


def losses(each: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Rows [n, G] of the losses [n] under each setting, bounded, and the norm of a row at most."""
    rows = torch.stack([loss.detach().float().cpu() for loss in each], 1)
    bounded = rows.nan_to_num(MOST_LOSS, MOST_LOSS, MOST_LOSS).clamp(-MOST_LOSS, MOST_LOSS)
    return bounded, MOST_LOSS * len(each) ** 0.5


def told(*chosen: int) -> Parts:
    """What was chosen, as all clients are told."""
    return Parts({CHOSEN: Part.of({CHOSEN: torch.tensor(chosen, dtype=torch.float32)})})


def chosen(known: Parts) -> list[int] | None:
    """What was chosen; None where nothing was yet."""
    return [int(k) for k in known[CHOSEN].vector] if CHOSEN in known else None
