"""What a method's clients tell in numbers: of each example plainly, or noised and paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from clients.training.trainer import Trainer
from fedpers.errors import ClientError
from fedpers.parts import Parts
from fedpers.stats import Stat

Told = Mapping[str, "float | Tensor"]
"""By a stat's name its value: a number, or a tensor [n] of a value for each training example, of
which the mean is told."""


def told(
    what: str,
    stats: Sequence[Stat],
    say: Callable[[Parts, Trainer], Told],
    working: Parts,
    trainer: Trainer,
) -> dict[str, float]:
    """The stats as they may leave; none of a client that has no examples, and may say so.

    In a private round each example's values are clipped to their bounds, and the means are released
    together, in one noised sum; how many examples there are is public, or was released.

    Args:
        what: as what the round was charged for them.
        stats: those declared.
        say: the method's hook that has them.
        working: the client's parts.
        trainer: the client's.

    Raises:
        ClientError: other stats than declared, a value that is not finite, or in a private round
            one that is not told of each example by itself.
    """
    if trainer.account is None and not len(trainer.examples):
        return {}
    values = say(working, trainer)
    if {*values} != {stat.name for stat in stats}:
        got, takes = ", ".join(sorted(values)) or "none", ", ".join(s.name for s in stats)
        raise ClientError(f"{what}: got {got}, takes {takes}")
    if trainer.account is None:
        return {stat.name: _mean(what, stat, values[stat.name]) for stat in stats}
    n = len(trainer.examples)
    columns = []
    for stat in stats:
        value = values[stat.name]
        if not isinstance(value, Tensor) or value.shape != (n,):
            raise ClientError(
                f"{what}: {stat.name} is one number, and with privacy takes a tensor of one value "
                "for each training example, which can be clipped and noised"
            )
        middle, half = (stat.low + stat.high) / 2, (stat.high - stat.low) / 2
        clipped = value.detach().cpu().double().clamp(stat.low, stat.high)
        columns.append(((clipped - middle) / half).float())
    width = len(stats) ** 0.5  # the longest that a row of values in -1..1 can be
    total = trainer.release(what, torch.stack(columns, dim=1) / width)
    means = (total * width / trainer.account.examples(n)).tolist()
    return {
        stat.name: stat.clipped((stat.low + stat.high + (stat.high - stat.low) * mean) / 2)
        for stat, mean in zip(stats, means, strict=True)
    }


def _mean(what: str, stat: Stat, value: float | Tensor) -> float:
    if isinstance(value, Tensor):
        value = float(value.detach().double().clamp(stat.low, stat.high).mean())
    if not isfinite(value):
        raise ClientError(f"{what}: {stat.name} is not finite")
    return stat.clipped(float(value))
