"""MAP (Li et al. 2024, arXiv 2404.09232): the shared models are averaged; the private ones stay."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("map")
class MAP(FedAvg):
    """Averages the models trained by the restricted softmax as FedAvg does."""
