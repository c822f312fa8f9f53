"""FedSoup (Chen et al., MICCAI 2023, arXiv 2307.10507): FedAvg; each client makes its own soup."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("fedsoup")
class FedSoup(FedAvg):
    """Averages the models that clients trained, not their soups."""
