"""FedAvg (McMahan et al. 2017, arXiv 1602.05629): the mean of the updates, weighted by examples."""

from __future__ import annotations

from strategies.base import PersonalizedStrategy, strategies


@strategies.register("fedavg")
class FedAvg(PersonalizedStrategy):
    """w = sum_k (n_k / n) w_k, for everyone."""


@strategies.register("fedavg-ft")
class FedAvgFT(FedAvg):
    """FedAvg on the server; each client fine-tunes what it receives before it predicts."""
