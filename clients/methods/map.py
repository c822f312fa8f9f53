"""MAP (Li et al. 2024, arXiv 2404.09232): a restricted softmax for what is shared, and a private
model that inherits from its own past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.labels import COUNTS, restricted, with_label_shares
from clients.methods.fedrod import trained_by_shares
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import Outputs, PersonalModel
from fedpers.models.slots import LabelShares
from fedpers.parts import Part, Parts
from fedpers.phases import Phase

TURNS = "personal.turns"  # in how many rounds the client took part
MOST = 0.9  # of the private model that is inherited
TEMPERATURE = 4.0


@dataclass
class MAPParams:
    """``alpha``: what is left of a class's logit where the client has none of it (0.9, 0.5 or 0.1
    in the paper's search).

    ``lam``: the share of the distillation from the inherited model (0.1 or 0.01 there).
    ``personal_epochs``, ``personal_lr``: of the private model, where they differ from ``training``.
    """

    alpha: float = setting(0.5, least=0, most=1)
    lam: float = setting(0.1, least=0, most=1)
    personal_epochs: int | None = setting(None, least=1)
    personal_lr: float | None = setting(None, above=0)


@algorithms.register("map")
class MAP(LocalAlgorithm):
    """Shared: cross-entropy of s_k l_k(x), s_k = (1 - alpha) q_k / max q + alpha with the label
    shares q (the published code; the paper's text has 0 and 1), in training only.

    Private: from what was received, (1 - lam) CE + lam KL(softmax(l_h / 4) || softmax(l)) to the
    inherited model h; then h <- mu h + (1 - mu) w with mu = min(0.9, 0.9 k / (q T)), where k counts
    the client's rounds and q T those that it may expect. Predictions are h's, as in the published
    code.

    The label counts shape what is sent: private runs noise them, once. The private model reads what
    was received and flows into nothing that is sent.
    """

    Params = MAPParams
    tasks = ("classification",)
    keeps = ("body", "head")
    accounted = True  # the counts are noised and charged; what is inherited stays here
    releases_counts = True
    scored = "after local training"

    def extend(self, model: PersonalModel) -> None:
        """The label shares, all alike at first."""
        model.add_slot("labels", LabelShares(model.task.outputs))

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the model that is to become the private one, and what was counted."""
        working = super().receive(broadcast, personal, context)
        fresh = {f"fresh.{slot}": broadcast[slot] for slot in self.sends}
        kept = personal.only(name for name in (COUNTS, TURNS) if name in personal)
        return working | fresh | self.initial.only(["labels"]) | kept

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        """The label shares; under privacy of counts that are noised once, for all rounds."""
        return with_label_shares(working, trainer)

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The model's logits; in ``extra`` the restricted ones."""
        outputs: Outputs = model(x)
        shares = model.get_submodule("labels")()
        trained = restricted(outputs.logits, shares, self.params.alpha)
        return Outputs(outputs.features, outputs.logits, {"trained": trained})

    def phases(self) -> Sequence[Phase]:
        """The private model, then the shared one."""
        labels, slots = {"labels": "labels"}, self.sends
        return [
            Phase(
                name="private model",
                model={**{slot: f"fresh.{slot}" for slot in slots}, **labels},
                trains=slots,
                released=False,
                loss=self.inheriting,
                reference=self.branch(self.keeps),
                epochs=self.params.personal_epochs,
                lr=self.params.personal_lr,
            ),
            Phase(
                name="local training",
                model=self.branch(()),
                trains=slots,
                released=True,
                loss=trained_by_shares,
            ),
        ]

    def filled(self, mode: str) -> Mapping[str, str]:
        """Personal: the inherited model. Global: as received."""
        return self.branch(self.keeps if mode == "personal" else ())

    def inheriting(self, outputs: Outputs, targets: Tensor, reference: Outputs | None) -> Tensor:
        """(1 - lam) CE + lam KL from the inherited model, [batch]."""
        assert reference is not None
        lam, taught = self.params.lam, F.log_softmax(reference.logits / TEMPERATURE, dim=1)
        learned = F.log_softmax(outputs.logits, dim=1)
        distance = F.kl_div(learned, taught, reduction="none", log_target=True).sum(dim=1)
        loss: Tensor = (1 - lam) * self.task.loss(outputs, targets) + lam * distance
        return loss

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """The private model moves towards the one just trained."""
        turns = working[TURNS]["turns"] + 1 if TURNS in working else torch.ones(1)
        expected = self.config.strategy.fraction * self.config.rounds
        mu = min(MOST, MOST * float(turns) / expected) if TURNS in working else 0.0
        moved = {TURNS: Part.of({"turns": turns})}
        for slot in self.keeps:
            old, new = working[f"personal.{slot}"], working[f"fresh.{slot}"]
            moved[f"personal.{slot}"] = old.like(mu * old.vector + (1 - mu) * new.vector)
        return working | moved
