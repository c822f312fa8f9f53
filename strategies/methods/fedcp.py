"""FedCP (Zhang et al., KDD 2023, arXiv 2307.01217): three means."""

from __future__ import annotations

from dataclasses import dataclass

from fedpers.config import setting
from fedpers.models import PersonalModel
from fedpers.models.slots import PolicyGate
from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@dataclass
class FedCPParams:
    """``gate_width``: a bottleneck in the gate (None: the published gate of width 2d)."""

    gate_width: int | None = setting(None, least=1)


@strategies.register("fedcp")
class FedCP(FedAvg):
    """Averages body, gate and mixed heads, weighted by examples.

    As a client sends 0.5 W_i + 0.5 W_g, the global head moves half of the way in a round:
    W_g <- 0.5 W_g + 0.5 mean(W_i).
    """

    Params = FedCPParams
    shares = ("body", "head", "gate")

    def extend(self, model: PersonalModel) -> None:
        """The gate, as on the clients."""
        width = self.params.gate_width
        model.add_slot("gate", PolicyGate(model.feature_dim, width, self.config.seed))
