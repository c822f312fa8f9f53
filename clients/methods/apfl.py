"""APFL (Deng et al. 2020, arXiv 2003.13461): a learned mixture of a local and the global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from clients.base import LocalAlgorithm, algorithms
from clients.branches import blended_branches, mixture
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Part, Parts
from fedpers.phases import Phase

SMALLEST = 0.01  # below this share the local model no longer matters, and would get no gradient


@dataclass
class APFLParams:
    """``alpha`` is where the mixing weight starts; ``adaptive`` lets it learn, at ``alpha_lr``."""

    alpha: float = setting(0.5, least=SMALLEST, most=1)
    adaptive: bool = True
    alpha_lr: float | None = setting(None, above=0)


@algorithms.register("apfl")
class APFL(LocalAlgorithm):
    """The personal model is v_bar = alpha v + (1 - alpha) w (equation 3).

    Each round: alpha <- alpha - eta <v - w, grad f(v_bar)> (equation 10), kept in [0.01, 1]; then v
    by the gradient of f(v_bar), which is alpha grad f at v_bar; then w_k from w by its own loss.
    w_k is sent; v and alpha stay. As the published formula mixes weights, LoRA is mixed exactly
    where one factor is frozen (``share: ffa``). w is what was received while v is trained: the
    branch that is sent reads nothing personal.
    """

    Params = APFLParams
    keeps = ("body", "head")
    accounted = True
    scored = "after combining"

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with alpha and the mixture v_bar that predicts."""
        start = Part.of({"alpha": torch.tensor(self.params.alpha)})
        working = super().receive(broadcast, personal, context)
        working = working | {"personal.alpha": personal.get("personal.alpha", start)}
        return working | self.mixture(working)

    def mixture(self, working: Parts) -> Parts:
        """The parts ``mixed.*``: alpha v + (1 - alpha) w."""
        return mixture(working, self.keeps, float(working["personal.alpha"].vector))

    def phases(self) -> Sequence[Phase]:
        """The local model within the mixture at alpha's start, then the shared branch."""
        return self._phases(self.params.alpha)

    def train(self, working: Parts, trainer: Trainer) -> Parts:
        """First alpha, then the phases."""
        if self.params.adaptive and len(trainer.examples):
            working = working | {"personal.alpha": self._next_alpha(working, trainer)}
        for phase in self._phases(float(working["personal.alpha"].vector)):
            working = trainer.run(phase, working)
        return working

    def filled(self, mode: str) -> Mapping[str, str]:
        """The personal model is the mixture."""
        mixed = {slot: f"mixed.{slot}" for slot in self.slots}
        return mixed if mode == "personal" else self.branch(())

    def _phases(self, alpha: float) -> list[Phase]:
        return blended_branches(self, alpha, local="local model", shared="shared branch")

    def _next_alpha(self, working: Parts, trainer: Trainer) -> Part:
        mixed = {slot: f"mixed.{slot}" for slot in self.slots}
        phase = Phase(name="alpha", model=mixed, trains=self.slots, released=False)
        everything = torch.arange(len(trainer.examples))
        gradient, _ = trainer.gradient(phase, working, everything, trains=False)
        slope = sum(
            float((working[f"personal.{s}"].vector - working[f"received.{s}"].vector) @ g.vector)
            for s, g in gradient.items()
        )
        alpha = working["personal.alpha"]
        rate = self.params.alpha_lr or self.config.training.lr
        return alpha.like((alpha.vector - rate * slope).clamp(SMALLEST, 1.0))
