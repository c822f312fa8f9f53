"""The label-prior baseline: FedAvg, and the population's label distribution beside it."""

from __future__ import annotations

from fedpers.models import PersonalModel
from fedpers.models.slots import LabelPrior
from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("prior")
class Prior(FedAvg):
    """Averages the clients' label distributions with the same weights as their models."""

    shares = ("body", "head", "prior")

    def extend(self, model: PersonalModel) -> None:
        """The two label distributions."""
        model.add_slot("prior", LabelPrior(model.task.outputs))
