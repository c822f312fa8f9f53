"""Per-FedAvg (Fallah et al., NeurIPS 2020, arXiv 2002.07948): a model that a few steps on the
client's own examples make its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from fedpers.config import Config, setting
from fedpers.errors import ConfigError
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from fedpers.phases import Phase


@dataclass
class PerFedAvgParams:
    """``alpha``: the rate of the step that personalises. ``beta``: that of the step that learns to
    be personalised; None for ``training.lr``.

    ``order``: ``first`` leaves the second derivative out (FO), ``hessian-free`` takes it from the
    difference of two gradients, ``distance`` apart (HF, eq. 10).
    ``tune_steps``: batches of alpha before a prediction.
    """

    alpha: float = setting(0.05, above=0)
    beta: float | None = setting(None, above=0)
    order: str = setting("first", choices=("first", "hessian-free"))
    distance: float = setting(1e-3, above=0)
    tune_steps: int = setting(1, least=0)


@algorithms.register("perfedavg")
class PerFedAvg(LocalAlgorithm):
    """Each step, of batches D, D' (and D''): v = grad f(w - alpha grad f(w; D); D'), then

    FO: w <- w - beta v;
    HF: w <- w - beta (v - alpha (grad f(w + d v; D'') - grad f(w - d v; D'')) / (2 d)).

    Both gradients of a private round's step are those of DP-SGD, each noised and charged by itself.
    """

    Params = PerFedAvgParams
    accounted = True  # every gradient is noised and charged
    scored = "after combining and tuning"

    def __init__(self, config: Config, model: PersonalModel, params: PerFedAvgParams) -> None:
        super().__init__(config, model, params)
        if params.order != "first" and config.privacy.by_example:
            takes = "first with privacy: of two noised gradients the difference is noise"
            raise ConfigError("strategy.params.order", params.order, takes)

    @property
    def gradients(self) -> int:
        """How many a step takes."""
        return 2 if self.params.order == "first" else 4

    def phases(self) -> Sequence[Phase]:
        """The shared model, in steps of the method's own."""
        return [replace(self.shared_phase(), gradients=self.gradients * self.config.privacy.steps)]

    def train(self, working: Parts, trainer: Trainer) -> Parts:
        """Meta-steps, as long as there are batches."""
        (phase,) = self.phases()
        batches = trainer.batches(phase)
        while (step := self.step(phase, working, trainer, batches)) is not None:
            working = step
        return working

    def step(
        self, phase: Phase, working: Parts, trainer: Trainer, batches: Iterator[Tensor]
    ) -> Parts | None:
        """A meta-step; None where the batches are at their end. Where too few are left for a whole
        one they are taken again in it: a client with a single batch trains, too."""
        drawn = list(islice(batches, self.gradients))
        if not drawn:
            return None
        drawn = list(islice(cycle(drawn), self.gradients))
        alpha, beta = self.params.alpha, self.params.beta or self.config.training.lr
        first = trainer.private_gradient(phase, working, drawn[0])
        v = trainer.private_gradient(phase, moved(phase, working, first, -alpha), drawn[1])
        if self.params.order == "first":
            return moved(phase, working, v, -beta)
        d, third = self.params.distance, drawn[2]
        above = trainer.private_gradient(phase, moved(phase, working, v, d), third)
        below = trainer.private_gradient(phase, moved(phase, working, v, -d), third)
        # The step is along v - alpha (above - below) / (2 d).
        stepped = moved(phase, working, v, -beta)
        stepped = moved(phase, stepped, above, beta * alpha / (2 * d))
        return moved(phase, stepped, below, -beta * alpha / (2 * d))

    def newcomer(self, steps: int) -> Sequence[Phase]:
        """Steps of alpha on the model received."""
        (phase,) = super().newcomer(steps)
        return [replace(phase, name="adapting", lr=self.params.alpha)]

    def tuning(self) -> Sequence[Phase]:
        """``tune_steps`` of them, before a prediction."""
        return self.newcomer(self.params.tune_steps) if self.params.tune_steps else []


def moved(phase: Phase, working: Parts, along: Parts, by: float) -> Parts:
    """The working parts, those that a phase trains with ``by`` times a gradient added."""
    steps = {phase.model[slot]: by * part.vector for slot, part in along.items()}
    return working | Parts({n: working[n].like(working[n].vector + v) for n, v in steps.items()})
