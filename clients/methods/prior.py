"""The label-prior baseline: global logits corrected by what is frequent on this client.

What a Dirichlet benchmark with matched test splits rewards. A method that does not beat it has
shown nothing beyond prior matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.labels import counted, label_shares, smoothed
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import Outputs, PersonalModel
from fedpers.models.slots import LabelPrior
from fedpers.parts import Part, Parts
from fedpers.phases import Phase


@dataclass
class PriorParams:
    """``tau``: the strength of the correction; 0 is the global model, 1 is Bayes' rule."""

    tau: float = setting(1.0, above=0)


@algorithms.register("prior")
class Prior(LocalAlgorithm):
    """argmax_k l_k(x) + tau log((n_ik + 1) / (n_i + C)) - tau log pi_k.

    l are the logits of FedAvg's model and pi is the population's label distribution: the combined
    mean of the clients' own, which they send as the part ``prior``. Trains nothing personal.
    """

    Params = PriorParams
    tasks = ("classification",)
    keeps = ("prior",)
    sends = ("body", "head", "prior")
    accounted = True  # the counts are noised and charged
    releases_counts = True

    def extend(self, model: PersonalModel) -> None:
        """The two label distributions."""
        model.add_slot("prior", LabelPrior(model.task.outputs))

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The model's logits plus the correction; zero unless ``prior`` is the client's."""
        outputs: Outputs = model(x)
        prior = model.get_submodule("prior")()
        return Outputs(outputs.features, outputs.logits + self.params.tau * prior)

    def phases(self) -> Sequence[Phase]:
        """FedAvg's local training."""
        trains = tuple(slot for slot in self.slots if slot != "prior")
        return [Phase(name="local training", model=self.branch(()), trains=trains, released=True)]

    def train(self, working: Parts, trainer: Trainer) -> Parts:
        """Train, then put the client's own label distribution into what is sent.

        Under privacy the counts are noised once, and the same ones are sent in every round.
        """
        working = counted(super().train(working, trainer), trainer)
        own = label_shares(working)
        sent = Part.of({"prior.own": own, "prior.population": own})
        return working | {"prior": sent}

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """The client's own distribution beside the population's, for the prediction; a newcomer has
        the population's alone."""
        if batches is not None:
            return working
        population = working["received.prior"]["prior.population"]
        own = smoothed(F.one_hot(trainer.examples.y.cpu(), self.task.outputs).float().sum(0))
        pair = {"prior.own": own, "prior.population": population}
        return working | {"personal.prior": Part.of(pair)}

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the counts once they were released; the prior is counted anew."""
        own = personal.only(name for name in personal if name != "personal.prior")
        return super().receive(broadcast, own, context) | own
