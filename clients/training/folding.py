"""Folding: several clients of a node train at once, with the results they would have alone.

Their batches are put together, and the gradient of the summed losses is each client's own gradient
in its own row, see ``clients.training.layers``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clients.base import LocalAlgorithm
from clients.training.folded import Group
from clients.training.folded_privately import descend_privately
from clients.training.layers import Fold, stacked_layers
from clients.training.optimizers import optimizer_of
from clients.training.trainer import Trainer
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from fedpers.phases import Phase


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
    if privacy.by_example and phase.released:
        for layer in layers:
            if layer.slot in phase.trains and not isinstance(layer.module, nn.Linear):
                return f"{layer.weight}: private training folds Linear layers alone"
    return None


def train_folded(
    fold: Fold, phase: Phase, trainers: Sequence[Trainer], workings: Sequence[Parts]
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
    group = Group(fold, phase, [trainers[k] for k in order], [workings[k] for k in order])
    with fold.installed():
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
            trainer.steps += trainer.account.take_phase().steps
        trainer.losses[phase.name] = losses[row]
        if noise and not phase.blend:
            trainer.noise |= dict.fromkeys((phase.model[s] for s in phase.trains), noise[row])
        results[k] = workings[k] | trained[row]
    return results


def descend(group: Group, batches: Sequence[Sequence[Tensor]]) -> list[float]:
    """Gradient descent of a group; each client's mean loss over its steps.

    Args:
        batches: each client's, as indices of its own examples; those with the most first.
    """
    phase, fold = group.phase, group.fold
    first, trained = group.trainers[0], list(group.parameters.values())
    optimizer = optimizer_of(phase, trained, group.share, first.config, first.server_round)
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
