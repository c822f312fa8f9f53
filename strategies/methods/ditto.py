"""Ditto (Li et al., ICML 2021, arXiv 2012.04221): on the server, FedAvg."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("ditto")
class Ditto(FedAvg):
    """Averages the shared branch; the personal branch lives on the clients alone."""
