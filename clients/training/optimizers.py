"""The optimiser of a phase."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fedpers.config import Config
from fedpers.phases import Phase


def optimizer_of(
    phase: Phase,
    parameters: Sequence[torch.nn.Parameter],
    share: float,
    config: Config,
    server_round: int,
    private_lr: float | None = None,
) -> torch.optim.Optimizer:
    """The optimiser of a phase in a round, over ``parameters`` that hold ``share`` of what is
    trained."""
    training = config.training
    lr = private_lr or phase.lr or training.lr
    if phase.decays:
        lr = decayed(lr, config, server_round)
    if training.optimizer == "sgd":
        # The model holds e = share * v + (1 - share) * w. A step on v moves e by share times
        # it, and the gradient for v is share times that for e: SGD on v is SGD on e at
        # lr * share^2.
        return torch.optim.SGD(
            parameters,
            lr=lr * share**2,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    adam = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    # Adam's step does not depend on the gradient's scale: one factor is left.
    return adam(parameters, lr=lr * share, weight_decay=training.weight_decay)


def decayed(lr: float, config: Config, server_round: int) -> float:
    """The learning rate of a round: constant, or a half cosine from ``lr`` down to 0."""
    if config.training.lr_decay == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * (server_round - 1) / config.rounds))
    return lr
