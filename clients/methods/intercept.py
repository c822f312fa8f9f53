"""The intercept baseline: the global model, and one personal number a class added to its logits.

Where clients differ in how readily they give a label, that is a threshold for each of them. A
method that does not beat it has learned nothing more about its clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import Outputs, PersonalModel
from fedpers.models.slots import Intercepts
from fedpers.parts import Parts
from fedpers.phases import Phase


@dataclass
class InterceptParams:
    """How the intercepts are trained, where that differs from ``training``."""

    intercept_epochs: int | None = setting(None, least=1)
    intercept_lr: float | None = setting(None, above=0)


@algorithms.register("intercept")
class Intercept(LocalAlgorithm):
    """argmax_k l_k(x) + b_ik, with l the logits of FedAvg's model.

    b_i is trained under the model received, and stays. Then that model is trained as in FedAvg,
    without b_i, and sent: it can be made private alone.
    """

    Params = InterceptParams
    keeps = ("intercept",)

    def extend(self, model: PersonalModel) -> None:
        """The intercepts, zero at first."""
        model.add_slot("intercept", Intercepts(model.task.outputs))

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with intercepts of zero for the global model."""
        return super().receive(broadcast, personal, context) | self.initial.only(["intercept"])

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The model's logits plus the intercepts."""
        outputs: Outputs = model(x)
        return Outputs(outputs.features, outputs.logits + model.get_submodule("intercept")())

    def phases(self) -> Sequence[Phase]:
        """The intercepts, then the shared model without them."""
        received = {"body": "received.body", "head": "received.head"}
        others = tuple(slot for slot in self.slots if slot != "intercept")
        return [
            Phase(
                name="intercepts",
                model={**self.branch(self.keeps), **received},
                trains=self.keeps,
                released=False,
                epochs=self.params.intercept_epochs,
                lr=self.params.intercept_lr,
            ),
            Phase(name="local training", model=self.branch(()), trains=others, released=True),
        ]

    def filled(self, mode: str) -> Mapping[str, str]:
        """Personal: with the client's intercepts. Global: as received."""
        return self.branch(self.keeps if mode == "personal" else ())
