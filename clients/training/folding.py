"""Folding: several clients of a node train at once, with the results they would have alone.

Their batches are put together, the layers that all of them share are computed once for the group,
and the layers of which each client has its own are one batched product over stacked tensors: a
slot of K clients is a matrix [K, size], laid out as in ``fedpers.parts``. The gradient of the
summed losses is then each client's own gradient in its own row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clients.base import LocalAlgorithm
from clients.training.folded_privately import Product, descend_privately
from clients.training.trainer import Trainer
from fedpers.compute import computing_in
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Part, Parts
from fedpers.phases import Phase

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
}
Owners = dict[str, tuple[nn.Module, str]]


class Layer(NamedTuple):
    """A layer whose tensors each client has its own of: the slot they are in, and their names."""

    module: nn.Module
    slot: str
    weight: str
    bias: str | None


def foldable(model: PersonalModel, algorithm: LocalAlgorithm, phase: Phase) -> str | None:
    """Why a phase cannot be trained for several clients at once; None if it can."""
    if type(algorithm).forward is not LocalAlgorithm.forward:
        return f"{type(algorithm).__name__} has a forward pass of its own"
    if phase.batch_loss is not None:
        return f"phase {phase.name!r} has a loss that looks across a batch"
    for slot in model.slots:
        if slot not in phase.model:
            return f"phase {phase.name!r} does not say what fills the slot {slot!r}"
    layers = stacked_layers(model)
    if isinstance(layers, str):
        return layers
    privacy = algorithm.config.privacy
    if privacy.enabled and privacy.unit == "example" and phase.released:
        for layer in layers:
            if layer.slot in phase.trains and not isinstance(layer.module, nn.Linear):
                return f"{layer.weight}: private training folds Linear layers alone"
    return None


def stacked_layers(model: PersonalModel) -> list[Layer] | str:
    """The layers that own the slots' tensors; or why one of them cannot be stacked."""
    owners: dict[int, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)] = module, leaf
    found: dict[int, dict[str, tuple[str, str]]] = {}
    modules: dict[int, nn.Module] = {}
    for slot, tensors in model.slots.items():
        for name, tensor in tensors.items():
            module, leaf = owners.get(id(tensor), (model, ""))
            if type(module) is not nn.Linear and type(module) not in CONVOLUTIONS:
                kind = type(module).__name__
                return f"{name} in slot {slot!r} belongs to no Linear or Conv layer ({kind})"
            modules[id(module)] = module
            found.setdefault(id(module), {})[leaf] = slot, name
    layers = []
    for key, leaves in found.items():
        module = modules[key]
        if set(leaves) != {leaf for leaf, _ in module.named_parameters()}:
            return f"{next(iter(leaves.values()))[1]}: a part of its layer is frozen"
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return f"{leaves['weight'][1]}: its padding is not of zeros"
        (slot, weight), bias = leaves["weight"], leaves.get("bias")
        layers.append(Layer(module, slot, weight, bias[1] if bias else None))
    return layers


class Fold:
    """The resident model, made to compute K clients at once.

    Args:
        model: only its layers' ``forward`` is put aside while a group trains.

    Raises:
        ValueError: the model has a slot that cannot be stacked.
    """

    def __init__(self, model: PersonalModel) -> None:
        layers = stacked_layers(model)
        if isinstance(layers, str):
            raise ValueError(f"fold: {layers}")
        self.model, self.layers = model, layers
        self.layouts = {slot: model.read(slot).layout for slot in model.slots}
        self.tape: list[Product] | None = None
        self.most = sys.maxsize  # clients that memory takes at once, as far as is known
        self._now: dict[str, Tensor] = {}

    def run(
        self, phase: Phase, trainers: Sequence[Trainer], workings: Sequence[Parts]
    ) -> list[Parts]:
        """What ``Trainer.run(phase, working)`` gives for each client, up to rounding (1e-5).

        The trainers are of one model, method, configuration and round. Nothing is noted in them
        and nothing is taken from their accounts before all have succeeded.

        Raises:
            ClientError: a client's training broke down; the others' results are lost with it.
            ValueError: a client's parts are laid out in another way than the model.
        """
        results = list(workings)
        order = [k for k, trainer in enumerate(trainers) if len(trainer.examples)]
        if not order:
            return results
        private = phase.released and trainers[order[0]].account is not None
        batches: dict[int, list[Tensor]] = {}
        if not private:
            batches = {k: list(trainers[k].batches(phase)) for k in order}
            # Those with the most batches first: the clients still at work are the first rows.
            order.sort(key=lambda k: -len(batches[k]))
        group = Group(self, phase, [trainers[k] for k in order], [workings[k] for k in order])
        with self._installed():
            if private:
                losses, noise = descend_privately(group)
            else:
                losses, noise = descend(group, [batches[k] for k in order]), []
        trained = group.trained()
        for parts, k in zip(trained, order, strict=True):
            trainers[k].check_finite(phase, parts)
        for row, k in enumerate(order):
            trainer = trainers[k]
            if private:
                assert trainer.account is not None
                trainer.account.take_phase()
            trainer.losses[phase.name] = losses[row]
            if noise and not phase.blend:
                trainer.noise |= dict.fromkeys((phase.model[s] for s in phase.trains), noise[row])
            results[k] = workings[k] | trained[row]
        return results

    def outputs(self, filled: Sequence[Mapping[str, Part]], x: Tensor) -> list[Outputs]:
        """What each client's model says of the same ``x`` [n, ...]; for a check.

        Args:
            filled: for each of K clients the part that fills each slot.

        Raises:
            ValueError: the forward pass does not call one of the stacked layers.
        """
        device = self.model.device
        self.use({s: torch.stack([f[s].vector for f in filled]).to(device) for s in self.layouts})
        with self._installed(), torch.no_grad():
            self.tape = []
            found = self.model(torch.cat([x] * len(filled)))
            called = {product.layer.weight for product in self.tape}
        for layer in self.layers:
            if layer.weight not in called:
                raise ValueError(
                    f"fold: the forward pass does not call the layer of {layer.weight}"
                )
        n = len(x)
        return [found.take(slice(k * n, (k + 1) * n)) for k in range(len(filled))]

    def use(self, matrices: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Compute with these matrices [K, size] from now on.

        Returns:
            For each slot and each of its tensors the stacked tensor [K, *shape], a view of the
            matrix that is a leaf of its own.
        """
        leaves = {
            slot: {
                name: matrix[:, start:end].detach().view(-1, *shape)
                for name, (start, end, shape) in self.layouts[slot].spans.items()
            }
            for slot, matrix in matrices.items()
        }
        self._now = {name: leaf for tensors in leaves.values() for name, leaf in tensors.items()}
        return leaves

    @contextmanager
    def _installed(self) -> Iterator[None]:
        """Within, the layers compute with each client's own tensors."""
        for layer in self.layers:
            layer.module.forward = partial(self._forward, layer)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.module.forward
            self._now, self.tape = {}, None

    def _forward(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer of K clients: the first n / K rows of x are the first client's, and so on."""
        weight, bias = self._now[layer.weight], self._now[layer.bias] if layer.bias else None
        if not isinstance(layer.module, nn.Linear):
            y = _convolve(layer.module, x, weight, bias)
            if self.tape is not None:
                self.tape.append(Product(layer, x, y))
            return y
        rows = x.reshape(len(weight), -1, x.shape[-1])
        if bias is None:
            y = torch.bmm(rows, weight.transpose(1, 2))
        else:
            y = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
        if self.tape is not None:
            if not y.requires_grad and torch.is_grad_enabled():
                y.requires_grad_(True)
            self.tape.append(Product(layer, rows, y))
        return y.view(*x.shape[:-1], -1)


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


def descend(group: Group, batches: Sequence[Sequence[Tensor]]) -> list[float]:
    """Gradient descent of a group; each client's mean loss over its steps.

    Args:
        batches: each client's, as indices of its own examples; those with the most first.
    """
    phase, fold = group.phase, group.fold
    optimizer = group.trainers[0].optimizer(phase, list(group.parameters.values()), group.share)
    total, count = torch.zeros(2, len(batches), device=group.device)
    active = 0
    for step in range(len(batches[0])):
        left = sum(len(own) > step for own in batches)
        if left != active:
            if active:
                group.finish(left, active)
            active = left
            leaves = fold.use({slot: m[:active] for slot, m in group.matrices.items()})
            for slot in group.parameters:
                for leaf in leaves[slot].values():
                    leaf.requires_grad_(True)
        index, counts = group.padded([own[step] for own in batches[:active]])
        losses, sizes = group.losses(index), counts.sum(1)
        total[:active] += (losses.detach() * counts).sum(1)
        count[:active] += sizes
        loss = (losses * (counts / sizes[:, None])).sum()
        gradients = iter(
            torch.autograd.grad(
                loss, [x for slot in group.parameters for x in leaves[slot].values()]
            )
        )
        for slot, parameter in group.parameters.items():
            assert parameter.grad is not None
            found = [next(gradients).flatten(1) for _ in leaves[slot]]
            torch.cat(found, dim=1, out=parameter.grad[:active])
        group.penalise()
        optimizer.step()
    if group.ends is not None:
        group.finish(0, active)
    return (total / count.clamp(min=1)).cpu().tolist()  # type: ignore[no-any-return]


def _convolve(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """K clients' convolutions as groups of one: x [K * n, channels, *places], weight [K, ...]."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    clients = len(weight)
    side_by_side = x.view(clients, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    y: Tensor = CONVOLUTIONS[type(module)](
        side_by_side,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        module.stride,
        module.padding,
        module.dilation,
        clients * module.groups,
    )
    return y.view(len(y), clients, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)
