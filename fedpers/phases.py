"""Phases: what a client trains, on which parts, and whether the result is released."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedpers.outputs import Outputs
from fedpers.tasks.base import Task

Loss = Callable[[Outputs, Tensor, Outputs | None], Tensor]
"""(outputs, targets [batch, ...], the reference model's outputs) -> a loss per sample [batch].

Pure and per sample: it changes no module and never looks across the batch. That is what lets
the trainer run the same method plainly or under differential privacy.
"""


@dataclass(frozen=True)
class Prox:
    """The penalty (mu/2) ||w - anchor||^2; its gradient mu (w - anchor) does not touch data."""

    mu: float
    anchor: Mapping[str, str]
    """For each trained slot, the working part it is held near."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of local training.

    Attributes:
        name: for logs and refusals: "personal branch".
        model: which working part fills each slot of the model, as {"head": "personal.head"}.
        trains: the slots that are trained; their working parts are replaced by the result.
        released: whether the result leaves the client or influences what leaves.
        loss: per sample; None for the task's own.
        batch_loss: a term over the whole batch, (outputs, targets, reference) -> scalar, that no
            per-sample guarantee covers.
        prox: a penalty on the trained parameters.
        reference: slots of a second, frozen model whose outputs the loss sees.
        blend: {slot: (part, share)}: the model runs on share * trained + (1 - share) * part.
        epochs, lr, batch_size: where they differ from ``training``.
        steps: at most so many batches, whatever the epochs say.
        gradients: the method takes this phase's steps itself, by ``trainer.private_gradient``: so
            many of them in a private round, in place of ``privacy.steps`` of ``trainer.run``.
        decays: whether the rate follows ``training.lr_decay``; not for what starts anew each time,
            as all does that is trained before a prediction.
    """

    name: str
    model: Mapping[str, str]
    trains: tuple[str, ...]
    released: bool
    loss: Loss | None = None
    batch_loss: Loss | None = None
    prox: Prox | None = None
    reference: Mapping[str, str] | None = None
    blend: tuple[Mapping[str, str], float] | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    steps: int | None = None
    gradients: int | None = None
    decays: bool = True

    def objective(self, task: Task) -> Loss:
        """The loss that is trained on."""
        return self.loss or (lambda outputs, targets, reference: task.loss(outputs, targets))
