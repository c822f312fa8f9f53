"""IFCA: the server has several models, and each client trains the one that fits it best (Ghosh et
al., NeurIPS 2020, arXiv 2006.04088, Algorithm 1 with averaged models)."""

from dataclasses import dataclass

import torch

from clients.base import LocalAlgorithm
from fedpers.parts import Part, Parts, bank
from fedpers.seeding import torch_generator
from fedpers.stats import Stat
from strategies.base import Needs, PersonalizedStrategy

MODELS = 3
CLUSTER = (Stat("cluster", 0, MODELS - 1),)


@dataclass
class Apart:
    """How far from each other the models start: a deviation, > 0."""

    apart: float = 0.1


class IFCA(PersonalizedStrategy):
    """Model j is the mean of what those sent who chose it; one that nobody chose stays as it is."""

    Params = Apart
    algorithm = "ifca:Chooser"
    reports = CLUSTER

    @classmethod
    def needs(cls, params):
        return Needs(banks=cls.shares)

    def first(self, parts):
        drawn = torch_generator(self.config.seed, "starts")
        copies = {}
        for slot, part in parts.items():
            noise = torch.randn(MODELS, part.layout.size, generator=drawn)
            copies |= bank(slot, [part.like(part.vector + self.params.apart * n) for n in noise])
        return Parts(copies)


class Chooser(LocalAlgorithm):
    """Takes the model of least loss on its training examples, to train and to predict; the first
    where it has none."""

    reports = CLUSTER
    scored = "after combining, with the model of least loss"

    def banks(self):
        return dict.fromkeys(self.sends, MODELS)

    def prepare(self, working, trainer):
        losses, x, y = [], trainer.examples.x, trainer.examples.y
        for j in range(MODELS if len(x) else 1):
            outputs = trainer.outputs(self.branch(()) | self.copies(j), working, x)
            losses.append(float(self.task.loss(outputs, y).mean()))
        chosen = min(range(len(losses)), key=losses.__getitem__)
        taken = {slot: working[part] for slot, part in self.copies(chosen).items()}
        return working | taken | {"cluster": Part.of({"number": torch.tensor([float(chosen)])})}

    def copies(self, j):
        return {slot: f"{slot}@{j}" for slot in self.sends}

    def tune(self, working, trainer, batches=None):
        return super().tune(self.prepare(working, trainer), trainer, batches)

    def upload(self, working):
        j = int(working["cluster"].vector)
        return Parts({part: working[slot] for slot, part in self.copies(j).items()})

    def report(self, working, trainer):
        return {"cluster": int(working["cluster"].vector)}
