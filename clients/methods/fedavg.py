"""FedAvg (McMahan et al. 2017), and FedAvg with fine-tuning before each prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clients.base import LocalAlgorithm, algorithms
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Parts
from fedpers.phases import Phase


@algorithms.register("fedavg")
class FedAvg(LocalAlgorithm):
    """Everything is shared: the personal model is the global one."""


@dataclass
class FineTuning:
    """How the received model is tuned: epochs, and the learning rate if not ``training.lr``."""

    tune_epochs: int = setting(10, least=1)
    tune_lr: float | None = setting(None, above=0)


@algorithms.register("fedavg-ft")
class FedAvgFT(LocalAlgorithm):
    """FedAvg; before a prediction the client fine-tunes the received model on its own examples.

    The tuned model is forgotten afterwards: each prediction starts from what was received. Tuning
    is local and influences nothing that leaves.
    """

    Params = FineTuning
    keeps = ("body", "head")
    scored = "after fine-tuning the received model"

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, but the personal copy always starts from what was received."""
        return super().receive(broadcast, Parts(), context)

    def phases(self) -> Sequence[Phase]:
        """FedAvg's local training of the shared model."""
        return [self.shared_phase()]

    def tuning(self) -> Sequence[Phase]:
        """Fine-tuning of the whole personal copy."""
        return [
            Phase(
                name="fine-tuning",
                model=self.branch(self.slots),
                trains=self.slots,
                released=False,
                epochs=self.params.tune_epochs,
                lr=self.params.tune_lr,
                decays=False,
            )
        ]

    def keep(self, working: Parts) -> Parts:
        """Nothing stays from round to round."""
        return Parts()
