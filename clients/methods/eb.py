"""A client's side of the empirical-Bayes head and the mixture: see ``strategies/methods/eb.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.base import algorithms
from clients.methods.local import Alone
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers import choosing, moments
from fedpers.config import setting
from fedpers.context import Context
from fedpers.discriminant import Heads, Own, Population
from fedpers.outputs import Outputs
from fedpers.parts import Parts
from fedpers.phases import Phase

FRAME, MOMENTS, SPREAD, LOSSES, MIXTURE = (
    *("eb frame", "eb moments", "eb spread", "eb losses", "eb mixture"),
)
# Each model: which working parts fill the slots.
GLOBAL = {"body": "body", "head": "head"}
TUNED = {"body": "tuned.body", "head": "tuned.head"}
BAYES = {"body": "body", "head": "bayes.head"}
ALONE = {"body": "alone.body", "head": "alone.head"}
MODELS = (GLOBAL, TUNED, BAYES, ALONE)


@dataclass
class EBParams:
    """``tune_epochs``: of fine-tuning, the most to choose from; its rate if not ``training.lr``."""

    tune_epochs: int = setting(20, least=1)
    tune_lr: float | None = setting(None, above=0)


@algorithms.register("eb")
class EB(Alone):
    """Trains the shared model and one of its own; all else happens before a prediction."""

    Params = EBParams
    tasks = ("classification",)
    keeps = ("body", "head")
    scored = "after mixing"
    chooses = "a mixture of global, fine-tuned, empirical-Bayes and local predictions"
    accounted = True  # the model of its own influences nothing that leaves

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with what each model of the mixture is at first."""
        return self._started(super().receive(broadcast, personal, context))

    def phases(self) -> Sequence[Phase]:
        """The model of its own, then the shared one."""
        own = self.branch(self.keeps)
        alone = Phase(name="local", model=own, trains=self.slots, released=False)
        return [alone, self.shared_phase()]

    def tuning(self) -> Sequence[Phase]:
        """Fine-tuning of what was received, in stretches."""
        return [
            Phase(
                name=f"fine-tuning {k}",
                model=self.branch(()) | TUNED,
                trains=self.slots,
                released=False,
                epochs=epochs,
                lr=self.params.tune_lr,
                decays=False,
            )
            for k, epochs in enumerate(choosing.stretches(self.params.tune_epochs))
        ]

    def pooled(self) -> tuple[str, ...]:
        """What the server asks for after the last round."""
        framed = () if self.config.privacy.by_example else (FRAME, SPREAD)
        return tuple(dict.fromkeys((*super().pooled(), *framed, MOMENTS, LOSSES, MIXTURE)))

    def pool(self, what: str, working: Parts, trainer: Trainer) -> tuple[Tensor, float]:
        """Rows of the sum called ``what``."""
        if what == LOSSES:
            return self._losses(working, trainer)
        if what == MIXTURE:
            own, y = self.tune(working, trainer), trainer.validation.y
            each = self._log_shares(own, MODELS, trainer.validation.x, trainer)
            mixtures = torch.tensor(choosing.mixtures(len(MODELS))).to(each)
            mixed = torch.einsum("gm,mnc->gnc", mixtures, each)
            return choosing.losses([self.task.loss(Outputs(m, m), y) for m in mixed])
        z, y = self._features(working, trainer, trainer.examples.x), trainer.examples.y.cpu()
        if what == FRAME:
            return moments.frame_rows(z), 1.0
        if what == MOMENTS:
            return moments.rows(z, y, self.task.outputs, self._frame(working, z)), 3**0.5
        known = Population.of(working["eb"])
        spread = known.spread(Own.of(z, y, self.task.outputs)) / max(1, len(y))
        return spread.expand(len(y), -1), 1.0  # of which the sum over clients is asked for

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """The models as they were chosen; a newcomer's is fine-tuned, and nothing else."""
        chosen = choosing.chosen(working)
        if batches is not None or chosen is None:
            tuned = super().tune(working, trainer, batches)
            others = [name for name in tuned if name != choosing.CHOSEN]
            return tuned if len(others) == len(tuned) else tuned.only(others)
        for phase in self.tuning()[: chosen[0]]:
            working = trainer.run(phase, working)
        alone = Parts({"body": working["personal.body"], "head": working["personal.head"]})
        if len(trainer.examples):
            working = working | {"bayes.head": self._heads(working, trainer).part(chosen[1])}
            alone = self.candidates(working, trainer)[chosen[2]]
        return working | {f"alone.{slot}": part for slot, part in alone.items()}

    def newcomer(self, steps: int) -> Sequence[Phase]:
        """So many batches of fine-tuning."""
        (first, *_) = self.tuning()
        return [Phase(**{**vars(first), "epochs": steps, "steps": steps})]

    def predict(
        self, mode: str, working: Parts, x: Tensor, view: ModelView, split: str
    ) -> Tensor | None:
        """The mixture, once there is one; before it the fine-tuned model."""
        chosen = choosing.chosen(working)
        if mode != "personal" or chosen is None or len(chosen) < 4:
            return super().predict(mode, working, x, view, split)
        weights = choosing.mixtures(len(MODELS))[chosen[3]]
        used = [(w, model) for w, model in zip(weights, MODELS, strict=True) if w]
        each = self._log_shares(working, [model for _, model in used], x, view)
        return torch.einsum("m,mnc->nc", torch.tensor([w for w, _ in used]).to(each), each)

    def filled(self, mode: str) -> Mapping[str, str] | None:
        """Of the personal models the fine-tuned one, which can be saved."""
        return self.branch(()) | (TUNED if mode == "personal" else GLOBAL)

    def _losses(self, working: Parts, trainer: Trainer) -> tuple[Tensor, float]:
        """After each stretch, of each empirical-Bayes head, and of each model of its own."""
        x, y, found = trainer.validation.x, trainer.validation.y, list[Tensor]()
        tuned = working
        for phase in (None, *self.tuning()):
            tuned = tuned if phase is None else trainer.run(phase, tuned)
            found.append(self.task.loss(trainer.outputs(self.branch(()) | TUNED, tuned, x), y))
        scores = self._heads(working, trainer).scores(self._features(working, trainer, x))
        found += [self.task.loss(Outputs(s, s), y.cpu()) for s in scores]
        found += self.losses_of(self.candidates(working, trainer), working, trainer)
        return choosing.losses(found)

    def _started(self, working: Parts) -> Parts:
        """With what fine-tuning starts from, and the head that a client without examples has."""
        first = {**{TUNED[s]: working[s] for s in TUNED}, **{ALONE[s]: working[s] for s in ALONE}}
        return working | first | {BAYES["head"]: working["head"]}

    def _features(self, working: Parts, trainer: Trainer, x: Tensor) -> Tensor:
        return trainer.outputs(self.branch(()), working, x).features.cpu()

    def _frame(self, working: Parts, z: Tensor) -> moments.Frame:
        if FRAME not in working:
            return moments.Frame.fixed(z.shape[1])
        return moments.Frame(working[FRAME]["mean"], working[FRAME]["spread"], False)

    def _heads(self, working: Parts, trainer: Trainer) -> Heads:
        z, y = self._features(working, trainer, trainer.examples.x), trainer.examples.y.cpu()
        return Population.of(working["eb"]).heads(Own.of(z, y, self.task.outputs))

    def _log_shares(
        self, working: Parts, models: Sequence[Mapping[str, str]], x: Tensor, view: ModelView
    ) -> Tensor:
        """log p [M, n, C] of some of ``MODELS``."""
        found = [view.outputs({**self.branch(()), **model}, working, x).scores for model in models]
        return torch.stack(found).log_softmax(2)
