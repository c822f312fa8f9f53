"""GPFL (Zhang et al., ICCV 2023, arXiv 2308.10279): bodies, valves and class embeddings
are averaged."""

from __future__ import annotations

from fedpers.models import PersonalModel
from fedpers.models.slots import Valve
from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("gpfl")
class GPFL(FedAvg):
    """As FedAvg; no head ever reaches the server."""

    shares = ("body", "valve")

    def extend(self, model: PersonalModel) -> None:
        """Valve and embeddings, as on the clients."""
        model.add_slot("valve", Valve(model.feature_dim, model.task.outputs, self.config.seed))
