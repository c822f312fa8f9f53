"""FedRoD (Chen and Chao, ICLR 2022, arXiv 2107.00778): a head for all classes alike, and on top of
it one for the client's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clients.base import LocalAlgorithm, algorithms
from clients.labels import COUNTS, restricted, with_label_shares
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import Outputs, PersonalModel
from fedpers.models.slots import LabelShares, zero_head
from fedpers.parts import Parts
from fedpers.phases import Phase


@dataclass
class FedRoDParams:
    """``softmax``: what makes the shared model fair to classes that a client hardly has:
    ``balanced`` (FedRoD: gamma log of a class's share is added to its logit), or ``restricted``
    (FedRS, MAP: a logit is times (1 - alpha) share / largest share + alpha), in training only.

    ``gamma``, ``alpha``: as above.
    ``own_epochs``, ``own_lr``: of the personal head, where they differ from ``training``.
    """

    softmax: str = setting("balanced", choices=("balanced", "restricted"))
    gamma: float = setting(1.0, least=0)
    alpha: float = setting(0.5, least=0, most=1)
    own_epochs: int | None = setting(None, least=1)
    own_lr: float | None = setting(None, above=0)


@algorithms.register("fedrod")
class FedRoD(LocalAlgorithm):
    """Logits of the shared model l = W f(x) + b, and personal ones l + W_i f(x) + b_i (eq. 4).

    Sent are body and head, trained by the balanced softmax: cross-entropy of l + gamma log q_i,
    where q_i are the client's label shares, (n_ik + 1) / (n_i + C). The personal head is trained
    under the model as received, by plain cross-entropy, and flows into nothing that is sent; the
    paper trains both in the same steps, which would couple them where gradients are clipped.

    The label counts are a statistic in a loss whose result leaves: private runs noise them, once.
    """

    Params = FedRoDParams
    tasks = ("classification",)
    keeps = ("own",)
    accounted = True  # the counts are noised and charged
    releases_counts = True

    def extend(self, model: PersonalModel) -> None:
        """The personal head, zero at first, and the label shares, all alike at first."""
        model.add_slot("own", zero_head(model.feature_dim, model.task.outputs))
        model.add_slot("labels", LabelShares(model.task.outputs))

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with an empty personal head for the global model, and the counts once they
        were released."""
        working = super().receive(broadcast, personal, context)
        counted = personal.only([COUNTS] if COUNTS in personal else [])
        return working | self.initial.only(["own", "labels"]) | counted

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        """The label shares; under privacy of counts that are noised once, for all rounds."""
        return with_label_shares(working, trainer)

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The personal logits; in ``extra`` those that the shared model is trained by."""
        outputs: Outputs = model(x)
        shares = model.get_submodule("labels")()
        if self.params.softmax == "balanced":
            trained = outputs.logits + self.params.gamma * shares.log()
        else:
            trained = restricted(outputs.logits, shares, self.params.alpha)
        own = model.get_submodule("own")
        assert isinstance(own, nn.Linear)
        scores = outputs.logits + own(outputs.features)
        return Outputs(outputs.features, scores, {"trained": trained})

    def phases(self) -> Sequence[Phase]:
        """The personal head on the model received, then the shared model without it."""
        received = {"body": "received.body", "head": "received.head"}
        return [
            Phase(
                name="personal head",
                model={**self.branch(self.keeps), **received},
                trains=("own",),
                released=False,
                epochs=self.params.own_epochs,
                lr=self.params.own_lr,
            ),
            Phase(
                name="local training",
                model=self.branch(()),
                trains=tuple(slot for slot in self.slots if slot not in ("own", "labels")),
                released=True,
                loss=trained_by_shares,
            ),
        ]

    def filled(self, mode: str) -> Mapping[str, str]:
        """Personal: with the personal head. Global: as received."""
        return self.branch(self.keeps if mode == "personal" else ())


def trained_by_shares(outputs: Outputs, targets: Tensor, reference: Outputs | None) -> Tensor:
    """Cross-entropy of the logits that label shares have changed, ``extra["trained"]``, [batch]."""
    return F.cross_entropy(outputs.extra["trained"], targets, reduction="none")
