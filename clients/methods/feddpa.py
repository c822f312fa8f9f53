"""FedDPA (Long et al., NeurIPS 2024, arXiv 2403.19211): dual personalising adapters."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.branches import blended_branches, mixture
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Part, Parts
from fedpers.phases import Phase
from fedpers.seeding import seed_for

LEVELS = 10  # instance weights are rounded to tenths, so that a batch needs few mixed models
MARGIN = 2.0  # standard deviations below the typical similarity at which half the weight is left
SURE = 1 / (1 + exp(-MARGIN))


@dataclass
class FedDPAParams:
    """``share``: the local adapter's share while it is trained (the paper's alpha).

    ``memory``: how many local examples an instance is compared with (S).
    """

    share: float = setting(0.5, above=0, below=1)
    memory: int = setting(64, least=2)


@algorithms.register("feddpa")
class FedDPA(LocalAlgorithm):
    """A global adapter g, averaged, and a local one l, mixed instance by instance (FedDPA-T).

    Training: l under share * l + (1 - share) * g with g as received; then g alone, which is sent
    and reads nothing local. Prediction for x: weight c(x) on l and 1 - c(x) on g, where c is how
    similar x is to local training examples: the mean cosine of its features to theirs under l,
    standardised by the values z that the examples have among themselves. c = share at typical
    values (the mixture that l was trained in; the paper's largest weight, too) and falls to 0
    where z is several standard deviations below them.

    The released script gives an instance like the local data *more* of the global adapter; the
    paper means the opposite, and so does this. Both parts (adapter and head) are mixed.
    """

    Params = FedDPAParams
    chooses = "a mixture for each example"
    keeps = ("body", "head")
    scored = "after combining"

    def phases(self) -> Sequence[Phase]:
        """The local adapter within the mixture, then the global one alone."""
        share = self.params.share
        return blended_branches(self, share, local="local adapter", shared="global adapter")

    def newcomer(self, steps: int) -> Sequence[Phase]:
        """The local adapter, as in training."""
        return [replace(self.phases()[0], name="newcomer", epochs=steps, steps=steps, decays=False)]

    def filled(self, mode: str) -> Mapping[str, str]:
        """The model that is saved: both adapters at the share they were trained at."""
        mixed = {slot: f"mixed.{slot}" for slot in self.slots}
        return mixed if mode == "personal" else self.branch(())

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the mixture at the training share."""
        working = super().receive(broadcast, personal, context)
        return working | self.mixture(working, self.params.share)

    def mixture(self, working: Parts, share: float) -> Parts:
        """The parts ``mixed.*``: share * l + (1 - share) * g."""
        return mixture(working, self.keeps, share)

    def recall(self, working: Parts, trainer: Trainer) -> Parts:
        """The features [S, d] of the remembered examples under l, each of length 1."""
        count = min(self.params.memory, len(trainer.examples))
        if count < 2:
            return working
        rng = random.Random(seed_for(self.config.seed, "memory", trainer.client))
        memory = torch.tensor(rng.sample(range(len(trainer.examples)), count))
        own = self.branch(self.slots)
        features = trainer.outputs(own, working, trainer.examples.x[memory]).features
        return working | {"memory": Part.of({"features": F.normalize(features)})}

    def predict(
        self, mode: str, working: Parts, x: Tensor, view: ModelView, split: str
    ) -> Tensor | None:
        """Each instance under its own mixture, its weight rounded to tenths."""
        if mode != "personal" or "memory" not in working:
            return super().predict("global", working, x, view, split)
        levels = (self.instance_weights(working, x, view).cpu() * LEVELS).round()
        filling = self.filled("personal")
        scores = torch.zeros(len(x), view.task.outputs)
        for level in torch.unique(levels):
            chosen = levels == level
            mixed = working | self.mixture(working, float(level) / LEVELS)
            scores[chosen] = view.outputs(filling, mixed, x[chosen]).scores.cpu()
        return scores

    def instance_weights(self, working: Parts, x: Tensor, view: ModelView) -> Tensor:
        """c(x) in (0, share] for each instance, [n]."""
        remembered = working["memory"]["features"].to(view.device)
        among = remembered @ remembered.T
        # Each remembered example against the others, without itself.
        typical = (among.sum(dim=1) - among.diagonal()) / (len(among) - 1)
        own = self.branch(self.slots)
        similar = F.normalize(view.outputs(own, working, x).features) @ remembered.T
        spread = typical.std(correction=0).clamp_min(1e-6)
        z = (similar.mean(dim=1) - typical.mean()) / spread
        return (torch.sigmoid(z + MARGIN) / SURE).clamp_max(1) * float(self.params.share)
