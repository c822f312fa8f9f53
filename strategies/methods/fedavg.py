"""FedAvg (McMahan et al. 2017, arXiv 1602.05629): the mean of the updates, weighted by examples."""

from __future__ import annotations

from dataclasses import dataclass

from fedpers import choosing
from fedpers.config import setting
from strategies.base import PersonalizedStrategy, strategies


@strategies.register("fedavg")
class FedAvg(PersonalizedStrategy):
    """w = sum_k (n_k / n) w_k, for everyone."""


@dataclass
class Tuned:
    """As on the clients."""

    tune_epochs: int = setting(10, least=1)
    choose: bool = False


@strategies.register("fedavg-ft")
class FedAvgFT(FedAvg):
    """FedAvg on the server; each client fine-tunes what it receives before it predicts."""

    Params = Tuned

    def settle(self, server_round: int) -> None:
        """Choose for how many epochs, if asked to."""
        if self.params.choose:
            epochs = choosing.epochs(self.params.tune_epochs)
            self.known |= choosing.told(self.pools.choose("epochs", len(epochs)))
