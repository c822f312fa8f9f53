"""FedBABU (Oh et al., ICLR 2022, arXiv 2106.06042): the head stays random until the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clients.base import LocalAlgorithm, algorithms
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from fedpers.phases import Phase
from fedpers.seeding import seeded


@dataclass
class FedBABUParams:
    """The fine-tuning before a prediction: epochs, rate, and of what (the paper: everything)."""

    tune_epochs: int = setting(10, least=1)
    tune_lr: float | None = setting(None, above=0)
    tune: str = setting("all", choices=("all", "head"))


@algorithms.register("fedbabu")
class FedBABU(LocalAlgorithm):
    """The body is trained and averaged under one random head, the same on all clients.

    Before a prediction a client fine-tunes its copy of the model, and forgets it afterwards. The
    global model is the body under the random head.
    """

    Params = FedBABUParams
    keeps = ("body", "head")
    sends = ("body",)
    scored = "after fine-tuning the received model"

    def extend(self, model: PersonalModel) -> None:
        """Give the head its random values: frozen zeros would teach the body nothing. Adapters of
        zero leave a model's own last blocks as they are, which do."""
        if model.own_head:
            with seeded(self.config.seed, "fedbabu", "head"):
                model.head.reset_parameters()

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the fixed head; the personal copy starts anew each time."""
        return super().receive(broadcast | self.initial.only(["head"]), Parts(), context)

    def phases(self) -> Sequence[Phase]:
        """The body under the fixed head."""
        below = tuple(slot for slot in self.slots if slot != "head")
        return [Phase(name="body", model=self.branch(()), trains=below, released=True)]

    def tuning(self) -> Sequence[Phase]:
        """Fine-tuning of the personal copy."""
        return [
            Phase(
                name="fine-tuning",
                model=self.branch(self.keeps),
                trains=("head",) if self.params.tune == "head" else self.slots,
                released=False,
                epochs=self.params.tune_epochs,
                lr=self.params.tune_lr,
                decays=False,
            )
        ]

    def filled(self, mode: str) -> dict[str, str]:
        """Both modes exist: the fixed head makes a global model of the received body."""
        return self.branch(self.keeps if mode == "personal" else ())

    def keep(self, working: Parts) -> Parts:
        """Nothing stays from round to round."""
        return Parts()
