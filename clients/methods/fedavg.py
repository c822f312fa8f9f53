"""FedAvg (McMahan et al. 2017), and FedAvg with fine-tuning before each prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from fedpers import choosing
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Parts
from fedpers.phases import Phase

EPOCHS = "epochs"


@algorithms.register("fedavg")
class FedAvg(LocalAlgorithm):
    """Everything is shared: the personal model is the global one."""


@dataclass
class FineTuning:
    """How the received model is tuned: epochs, and the learning rate if not ``training.lr``.

    ``choose``: after how many epochs, up to ``tune_epochs``, tuning stops, for all clients; by
    pooled validation losses.
    """

    tune_epochs: int = setting(10, least=1)
    tune_lr: float | None = setting(None, above=0)
    choose: bool = False


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
        """Fine-tuning of the whole personal copy; in stretches, where one is chosen to stop at."""
        most = self.params.tune_epochs
        return [
            Phase(
                name=f"fine-tuning {k}" if self.params.choose else "fine-tuning",
                model=self.branch(self.slots),
                trains=self.slots,
                released=False,
                epochs=epochs,
                lr=self.params.tune_lr,
                decays=False,
            )
            for k, epochs in enumerate(choosing.stretches(most) if self.params.choose else [most])
        ]

    def pooled(self) -> tuple[str, ...]:
        """The losses after each stretch, if one is to be chosen."""
        return (*super().pooled(), *((EPOCHS,) if self.params.choose else ()))

    def pool(self, what: str, working: Parts, trainer: Trainer) -> tuple[Tensor, float]:
        """What the model loses after no stretch, one, two ... on the validation examples."""
        found = []
        for phase in (None, *self.tuning()):
            working = working if phase is None else trainer.run(phase, working)
            outputs = trainer.outputs(self.branch(self.slots), working, trainer.validation.x)
            found.append(self.task.loss(outputs, trainer.validation.y))
        return choosing.losses(found)

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """As the base, up to the stretch that was chosen."""
        chosen = choosing.chosen(working)
        if chosen is None or batches is not None:
            return super().tune(working, trainer, batches)
        for phase in self.tuning()[: chosen[0]]:
            working = trainer.run(phase, working)
        return working

    def keep(self, working: Parts) -> Parts:
        """Nothing stays from round to round."""
        return Parts()
