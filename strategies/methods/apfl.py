"""APFL (Deng et al. 2020, arXiv 2003.13461): on the server, FedAvg."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("apfl")
class APFL(FedAvg):
    """Averages the shared branch; local models and mixing weights live on the clients alone."""
