"""pFedSim (Tan et al. 2023, arXiv 2305.15706): plain training, of a body mixed for this client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers.models import PersonalModel
from fedpers.models.slots import compared
from fedpers.parts import Part, Parts
from fedpers.phases import Phase


@algorithms.register("pfedsim")
class PFedSim(LocalAlgorithm):
    """Body and head are trained together and sent, in both stages of the run.

    In the generalisation stage both are global; in the personalisation stage the server sends a
    body mixed for this client, and the head that it uploaded last. The personal model is the one
    last trained here; the global model is the mean of all, which the server keeps up.
    """

    keeps = ("body", "head")
    accounted = True
    derives: ClassVar[tuple[str, ...]] = ("unit",)
    scored = "after local training"

    def check(self, model: PersonalModel) -> None:
        """Heads are what is compared."""
        self.needs_head(model)

    def phases(self) -> Sequence[Phase]:
        """Everything together."""
        return [self.shared_phase()]

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """What was trained is the personal model, too."""
        return working | {f"personal.{slot}": working[slot] for slot in self.keeps}

    def filled(self, mode: str) -> dict[str, str]:
        """Personal: the model last trained here. Global: as received."""
        return self.branch(self.keeps if mode == "personal" else ())

    def derived(self, name: str, upload: Parts, view: ModelView, public: Tensor) -> Part:
        """The head's rows, each of length 1: the inner product of two clients' is the sum of the
        cosines, over all classes."""
        rows = F.normalize(compared(upload["head"]), dim=1)
        return Part.of({"rows": rows})

    @staticmethod
    def weights_of(cosines: Sequence[float]) -> list[float]:
        """-ln(1 - s) of mean cosines s within 0..0.9999, each rounded to 0.01 of the largest: what
        the server may know of the heads."""
        weights = [-math.log(1 - min(max(s, 0.0), CLOSEST)) for s in cosines]
        return [round(weight / max(weights), 2) for weight in weights]


CLOSEST = 0.9999  # as in strategies/methods/pfedsim.py
