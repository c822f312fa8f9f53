"""GPFL (Zhang et al., ICCV 2023, arXiv 2308.10279): of each feature a general view and a
personal one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.labels import COUNTS, counted, label_shares
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import Outputs, PersonalModel
from fedpers.models.slots import Conditions, Valve
from fedpers.parts import Part, Parts
from fedpers.phases import Phase


@dataclass
class GPFLParams:
    """``lam``: the weight of the distance from general features to their class's embedding."""

    lam: float = setting(0.01, least=0)


@algorithms.register("gpfl")
class GPFL(LocalAlgorithm):
    """Valve V(z, c) = ReLU((gamma(c) + 1) z + beta(c)) on features z; class embeddings E [C, d].

    The general condition is the mean of E's rows, the personal one their sum weighted by the
    client's label shares; both of E as received, for the whole round (the published code takes E
    as it was a round before). Per sample:

    CE(W_i V(z, c_p), y) + CE(cos(V(z, c_g), E), y) + lam ||V(z, c_g) - E_y as received||.

    The norm is each example's own, where the published code takes that of the whole batch: its lam
    is about this one times the root of the batch size. Body, valve and E are sent; the personal
    head stays, and as gradients flow through it into the body it is trained under the same noise in
    private runs. The label shares are noised once there.
    """

    Params = GPFLParams
    tasks = ("classification",)
    keeps = ("head",)
    sends = ("body", "valve")
    accounted = True  # the counts are noised and charged
    releases_counts = True
    scored = "after combining, before local training"

    def extend(self, model: PersonalModel) -> None:
        """Valve and embeddings, and what they are conditioned on in a round."""
        classes = model.task.outputs
        model.add_slot("valve", Valve(model.feature_dim, classes, self.config.seed))
        model.add_slot("conditions", Conditions(model.feature_dim, classes))

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with conditions of the mean of the embeddings, for whoever has counted no
        labels yet."""
        working = super().receive(broadcast, personal, context)
        embedded = broadcast["valve"]["valve.embeddings"]
        general = embedded.mean(dim=0)
        counts = personal.only([COUNTS] if COUNTS in personal else [])
        return working | counts | {"conditions": conditions(embedded, general, general)}

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        """The personal condition."""
        return self.conditioned(counted(working, trainer))

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """The personal condition, for the prediction of those who have counted their labels."""
        known = self.conditioned(working) if COUNTS in working else working
        return super().tune(known, trainer, batches)

    def conditioned(self, working: Parts) -> Parts:
        """The working parts with the conditions of a client that has counted its labels."""
        embedded = working["received.valve"]["valve.embeddings"]
        personal = label_shares(working) @ embedded
        made = conditions(embedded, embedded.mean(dim=0), personal)
        return working | {"conditions": made}

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The personal head on the personal view; the general view in ``extra``."""
        valve, held = model.get_submodule("valve"), model.get_submodule("conditions")
        assert isinstance(valve, Valve) and isinstance(held, Conditions)
        z = model.features(x)
        general, personal = valve(z, held.general), valve(z, held.personal)
        cosines = F.normalize(general, dim=1) @ F.normalize(valve.embeddings, dim=1).T
        apart = (general[:, None] - held.embeddings).square().sum(dim=2).clamp_min(1e-12).sqrt()
        return Outputs(z, model.head(personal), {"cosines": cosines, "apart": apart})

    def phases(self) -> Sequence[Phase]:
        """Everything together."""
        return [
            Phase(
                name="local training",
                model=self.branch(self.keeps),
                trains=tuple(slot for slot in self.slots if slot != "conditions"),
                released=True,
                loss=self.guided,
            )
        ]

    def guided(self, outputs: Outputs, targets: Tensor, reference: Outputs | None) -> Tensor:
        """The task's loss, the embeddings' and the distance, [batch]."""
        classed = F.cross_entropy(outputs.extra["cosines"], targets, reduction="none")
        apart = outputs.extra["apart"].gather(1, targets[:, None])[:, 0]
        return self.task.loss(outputs, targets) + classed + float(self.params.lam) * apart

    def filled(self, mode: str) -> Mapping[str, str] | None:
        """Personal: the client's head. There is no global model: its head would be nobody's."""
        return self.branch(self.keeps) if mode == "personal" else None


def conditions(embeddings: Tensor, general: Tensor, personal: Tensor) -> Part:
    """What the slot ``conditions`` holds in a round."""
    named = {"embeddings": embeddings, "general": general, "personal": personal}
    return Part.of({f"conditions.{name}": value for name, value in named.items()})
