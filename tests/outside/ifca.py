"""IFCA (Ghosh et al. 2020, arXiv 2006.04088): K models, of which each client trains the one that
fits its examples best."""

from dataclasses import dataclass

import torch

from clients.base import LocalAlgorithm
from fedpers.parts import Part, Parts
from fedpers.seeding import torch_generator
from strategies.base import Needs, PersonalizedStrategy


@dataclass
class Clusters:
    """How many models."""

    clusters: int = 3


def bank(parts, clusters):
    """Copies of all slots, ``body@0`` and so on, moved apart: else all would fit alike."""
    copies = {}
    for k in range(clusters):
        for slot, part in parts.items():
            drawn = torch.randn(part.layout.size, generator=torch_generator(0, "bank", k, slot))
            copies[f"{slot}@{k}"] = part.like(part.vector + 0.1 * drawn)
    return Parts(copies)


class Ifca(PersonalizedStrategy):
    """Each copy is the mean of those who trained it."""

    Params = Clusters
    algorithm = "ifca:Fitting"

    @classmethod
    def needs(cls, params):
        return Needs(banks=("body", "head"))

    def first(self, parts):
        return bank(parts, self.params.clusters)


class Fitting(LocalAlgorithm):
    """Trains and sends the copy of the least loss, and predicts with it."""

    Params = Clusters
    scored = "after combining, with the model that fits best"

    def banks(self):
        return dict.fromkeys(self.sends, self.params.clusters)

    def prepare(self, working, trainer):
        losses = []
        for k in range(self.params.clusters if len(trainer.examples) else 1):
            filling = {slot: f"{slot}@{k}" for slot in self.slots}
            outputs = trainer.outputs(filling, working, trainer.examples.x)
            losses.append(float(self.task.loss(outputs, trainer.examples.y).mean()))
        best = min(range(len(losses)), key=losses.__getitem__)
        chosen = {slot: working[f"{slot}@{best}"] for slot in self.slots}
        return working | chosen | {"best": Part.of({"": torch.tensor([float(best)])})}

    def tune(self, working, trainer, batches=None):
        return super().tune(self.prepare(working, trainer), trainer, batches)

    def upload(self, working):
        best = int(working["best"].vector)
        return Parts({f"{slot}@{best}": working[slot] for slot in self.slots})

    def filled(self, mode):
        return self.branch(()) if mode == "personal" else None
