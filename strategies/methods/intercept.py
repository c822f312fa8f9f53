"""The intercept baseline: FedAvg; each client's numbers a class stay with it."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("intercept")
class Intercept(FedAvg):
    """Averages the shared models as FedAvg does."""
