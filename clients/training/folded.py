"""K clients in one phase: their examples one after another, their slots as matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clients.training.layers import Fold
from clients.training.trainer import Trainer
from fedpers.compute import computing_in
from fedpers.models import Outputs
from fedpers.parts import Part, Parts
from fedpers.phases import Phase


class Group:
    """K clients in a phase: their examples one after another, their slots as matrices [K, size].

    Args:
        fold: the model.
        trainers: K of them, each with at least one example.
        workings: the clients' parts before the phase.
    """

    def __init__(
        self, fold: Fold, phase: Phase, trainers: Sequence[Trainer], workings: Sequence[Parts]
    ) -> None:
        self.fold, self.phase, self.trainers, self.workings = fold, phase, trainers, workings
        self.device, self.objective = fold.model.device, phase.objective(fold.model.task)
        self.blend, self.share = phase.blend or ({}, 1.0)
        self.x = torch.cat([trainer.examples.x for trainer in trainers])
        self.y = torch.cat([trainer.examples.y for trainer in trainers])
        sizes = torch.tensor([len(trainer.examples) for trainer in trainers])
        self.starts = sizes.cumsum(0) - sizes  # each client's first row of x
        self.reference: Outputs | None = None
        if phase.reference is not None:
            each = [
                trainer.outputs(phase.reference, working, trainer.examples.x)
                for trainer, working in zip(trainers, workings, strict=True)
            ]
            self.reference = Outputs.cat(each)
        self.matrices = {slot: self._stacked(slot) for slot in fold.layouts}
        self.parameters = {slot: nn.Parameter(self.matrices[slot]) for slot in phase.trains}
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.anchors: dict[str, Tensor] = {}
        if phase.prox is not None:
            self.anchors = {
                slot: self._column(slot, part) for slot, part in phase.prox.anchor.items()
            }
        self.ends: dict[str, Tensor] | None = None

    def losses(self, index: Tensor) -> Tensor:
        """The loss of each example, [K, B].

        Args:
            index: rows of ``x``, [K, B]; in row k those of client k.
        """
        flat = index.reshape(-1)
        with computing_in(self.trainers[0].config.training.precision, self.device):
            found: Outputs = self.fold.model(self.x[flat])
        seen = None if self.reference is None else self.reference.take(flat)
        return self.objective(found.float(), self.y[flat], seen).view(index.shape)

    def padded(self, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Batches [b_k] of the first clients as rows of ``x`` [k, B], and which of them count; from
        the CPU to where the examples are.

        A row that fills up is one of the client's own examples: were it somebody else's, that
        one's broken values could spread, even at a weight of zero.
        """
        starts = self.starts[: len(batches), None]
        index = pad_sequence(list(batches), batch_first=True, padding_value=-1)
        counts = index >= 0
        rows = index.clamp(min=0) + starts
        return (
            rows.to(self.device, non_blocking=True),
            counts.to(self.device, non_blocking=True),
        )

    def penalise(self) -> None:
        """Add the prox's gradient mu (w - anchor)."""
        for slot, anchor in self.anchors.items():
            assert self.phase.prox is not None
            gradient = self.parameters[slot].grad
            assert gradient is not None
            gradient.add_(self.matrices[slot] - anchor, alpha=self.phase.prox.mu)

    def finish(self, first: int, last: int) -> None:
        """The clients in these rows are done: what becomes of the rows later is not theirs."""
        if self.ends is None:
            self.ends = {slot: p.detach().clone() for slot, p in self.parameters.items()}
        for slot, parameter in self.parameters.items():
            self.ends[slot][first:last] = parameter.detach()[first:last]

    def trained(self) -> list[dict[str, Part]]:
        """The trained parts of each client."""
        found: list[dict[str, Part]] = [{} for _ in self.trainers]
        for slot, parameter in self.parameters.items():
            matrix = parameter.detach() if self.ends is None else self.ends[slot]
            name, layout = self.phase.model[slot], self.fold.layouts[slot]
            if slot in self.blend:
                frozen = self._column(slot, self.blend[slot])
                matrix = (matrix - (1 - self.share) * frozen) / self.share
            for row, vector in zip(found, matrix.cpu(), strict=True):
                row[name] = Part(layout, vector.clone())
        return found

    def _stacked(self, slot: str) -> Tensor:
        matrix = self._column(slot, self.phase.model[slot])
        if slot in self.blend:
            frozen = self._column(slot, self.blend[slot])
            matrix = self.share * matrix + (1 - self.share) * frozen
        return matrix

    def _column(self, slot: str, part: str) -> Tensor:
        """A part of every client, [K, size]."""
        layout = self.fold.layouts[slot]
        for working in self.workings:
            if working[part].layout.shapes != layout.shapes:
                raise ValueError(f"slot {slot}: part {part!r} is laid out in another way")
        matrix = torch.stack([working[part].vector for working in self.workings])
        return matrix.to(self.device, layout.dtype)
