"""FedALA (Zhang et al., AAAI 2023, arXiv 2212.01197): on the server, FedAvg."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("fedala")
class FedALA(FedAvg):
    """Averages the trained models; what is adaptive happens on the clients."""
