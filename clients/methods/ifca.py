"""IFCA (Ghosh et al., NeurIPS 2020, arXiv 2006.04088): of several models a client trains the one
that fits it best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Part, Parts


@dataclass
class IFCAParams:
    """``models``: how many there are (K).

    ``loss_bound``: what an example's K losses are clipped to, as a vector, where the choice is for
    training.
    """

    models: int = setting(3, least=2)
    loss_bound: float = setting(10.0, above=0)


@algorithms.register("ifca")
class IFCA(LocalAlgorithm):
    """Algorithm 1 with averaged models: j = argmin_k of the sum of losses of model k over the
    training examples; model j is trained and sent.

    Which model a client trains is seen by the server, so the sums it is chosen by are a release:
    private runs noise and charge them in each round (the choice is made of the noised ones). For
    predictions it is chosen anew by the exact losses, which stays on the client; a client without
    examples takes the first.
    """

    Params = IFCAParams
    accounted = True  # what is chosen by is noised and charged
    releases_sums = 1
    scored = "after combining, with the model of least loss"

    def banks(self) -> Mapping[str, int]:
        """K copies of all that is shared."""
        return dict.fromkeys(self.sends, self.params.models)

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the first model in use."""
        return self.take(super().receive(broadcast, personal, context), 0)

    def losses(self, working: Parts, trainer: Trainer) -> Tensor:
        """Of each training example under each model, [n, K]."""
        x, y = trainer.examples.x, trainer.examples.y
        if len(x) == 0:
            return torch.zeros(0, self.params.models)
        filled = (self.branch(()) | self.copies(k) for k in range(self.params.models))
        each = [self.task.loss(trainer.outputs(model, working, x), y) for model in filled]
        return torch.stack(each, dim=1).cpu()

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        """The chosen model becomes the one that is trained, by sums that private runs noise."""
        total, _ = trainer.release_sums(self.losses(working, trainer), self.params.loss_bound)
        return self.take(working, int(total.argmin()))

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """The model of least loss; a newcomer trains it a little."""
        chosen = int(self.losses(working, trainer).sum(dim=0).argmin())
        return super().tune(self.take(working, chosen), trainer, batches)

    def take(self, working: Parts, k: int) -> Parts:
        """The working parts with model k in use."""
        taken = {slot: working[copy] for slot, copy in self.copies(k).items()}
        return working | taken | {"chosen": Part.of({"number": torch.tensor([float(k)])})}

    def copies(self, k: int) -> dict[str, str]:
        """The parts of model k, by slot."""
        return {slot: f"{slot}@{k}" for slot in self.sends}

    def upload(self, working: Parts) -> Parts:
        """The chosen model, under its number."""
        k = int(working["chosen"].vector)
        return Parts({copy: working[slot] for slot, copy in self.copies(k).items()})
