"""A phase's loss as a function of what it trains, for methods that differentiate through steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.func import functional_call

from clients.training.view import ModelView
from fedpers.data import Examples
from fedpers.models import Outputs
from fedpers.parts import Parts
from fedpers.phases import Phase

Objective = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""From the trained slots' vectors [size], laid out as their parts, and a batch's indices [n] to the
mean loss of the batch, with all that the phase adds to it. ``torch.autograd.grad`` may be taken of
it as often as the model can be differentiated."""


class _Called(nn.Module):
    """The method's forward pass as a module's own, whose tensors can be put in its place."""

    def __init__(self, view: ModelView) -> None:
        super().__init__()
        self.model, self.algorithm = view.model, view.algorithm

    def forward(self, x: Tensor) -> Outputs:
        return self.algorithm.forward(self.model, x, training=True)


def objective(view: ModelView, phase: Phase, working: Parts, examples: Examples) -> Objective:
    """See ``Trainer.objective``."""
    called, device = _Called(view), view.device
    paths = {slot: view.model.paths(slot) for slot in phase.model}
    parts = {slot: working[part] for slot, part in phase.model.items()}
    blend, share = phase.blend or ({}, 1.0)

    def mean_loss(vectors: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        chosen = examples.take(batch.to(device))
        seen = None
        if phase.reference is not None:
            seen = view.outputs(phase.reference, working, chosen.x)
        tensors: dict[str, Tensor] = {}
        for slot, part in parts.items():
            vector = vectors.get(slot, part.vector)
            if slot in blend:
                vector = share * vector + (1 - share) * working[blend[slot]].vector
            vector = vector.to(device)
            for name, (start, end, shape) in part.layout.spans.items():
                tensors[f"model.{paths[slot][name]}"] = vector[start:end].view(shape)
        outputs = functional_call(called, tensors, (chosen.x,))
        loss = phase.objective(view.task)(outputs, chosen.y, seen).mean()
        if phase.batch_loss is not None:
            loss = loss + phase.batch_loss(outputs, chosen.y, seen)
        if phase.prox is not None:
            for slot, anchor in phase.prox.anchor.items():
                gap = vectors.get(slot, parts[slot].vector) - working[anchor].vector
                loss = loss + phase.prox.mu / 2 * gap.square().sum().to(device)
        return loss

    return mean_loss
