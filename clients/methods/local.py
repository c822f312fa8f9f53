"""Local-only training: no collaboration. The second baseline every method is judged by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from fedpers import choosing
from fedpers.context import Context
from fedpers.discriminant import own_heads
from fedpers.parts import Parts
from fedpers.tasks.classification import Classification

ALONE = "alone"


@dataclass
class LocalParams:
    """``choose``: for all clients, after how many rounds local training is best stopped, or whether
    a linear discriminant of each client's own beats it; by pooled validation losses."""

    choose: bool = False


class Alone(LocalAlgorithm):
    """Keeps models of a client's own in ``personal.*`` from several rounds, to choose from."""

    accounted = True  # what is kept of them influences nothing that leaves

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the models of earlier rounds."""
        kept = personal.only(name for name in personal if "@" in name)
        return super().receive(broadcast, personal, context) | kept

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """Keep the model of a round that may be chosen."""
        if trainer.server_round not in choosing.rounds(self.config.rounds):
            return working
        return working | {
            f"personal.{slot}@{trainer.server_round}": working[f"personal.{slot}"]
            for slot in ("body", "head")
        }

    def candidates(self, working: Parts, trainer: Trainer) -> list[Parts]:
        """Bodies and heads that may be chosen: those kept, and for classes the discriminants on
        features that nobody has trained yet."""
        slots = ("body", "head")
        found = []
        for mark in choosing.rounds(self.config.rounds):
            names = {s: f"personal.{s}@{mark}" for s in slots}
            there = {s: n if n in working else f"personal.{s}" for s, n in names.items()}
            found.append(Parts({s: working[n] for s, n in there.items()}))
        if isinstance(self.task, Classification):
            first = self.initial.only(slots)
            z = trainer.outputs(self.branch(()), working | first, trainer.examples.x).features
            heads = own_heads(z.cpu(), trainer.examples.y.cpu(), self.task.outputs)
            found += [first | {"head": heads.part(k)} for k in range(len(heads.weight))]
        return found

    def losses_of(self, candidates: list[Parts], working: Parts, trainer: Trainer) -> list[Tensor]:
        """What each loses on the client's validation examples, [n]."""
        x, y = trainer.validation.x, trainer.validation.y
        found = [trainer.outputs(self.branch(()), working | own, x) for own in candidates]
        return [self.task.loss(outputs, y) for outputs in found]


@algorithms.register("local")
class Local(Alone):
    """Each client trains its own copy of everything and sends nothing."""

    Params = LocalParams
    keeps = ("body", "head")
    sends = ()
    scored = "after local training"
    accounted = True  # what is kept influences nothing that leaves

    def pooled(self) -> tuple[str, ...]:
        """The losses of what can be chosen, if it is to be."""
        return (*super().pooled(), *((ALONE,) if self.params.choose else ()))

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, and nothing but its own where it starts."""
        return super().receive(self.initial | broadcast, personal, context)

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """Keep the models of rounds that may be chosen, if one is to be."""
        return super().conclude(working, trainer) if self.params.choose else working

    def pool(self, what: str, working: Parts, trainer: Trainer) -> tuple[Tensor, float]:
        """What each candidate loses."""
        candidates = self.candidates(working, trainer)
        return choosing.losses(self.losses_of(candidates, working, trainer))

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """The model that was chosen."""
        chosen = choosing.chosen(working)
        if chosen is None or batches is not None or not len(trainer.examples):
            return super().tune(working, trainer, batches)
        own = self.candidates(working, trainer)[chosen[0]]
        return working | {f"personal.{slot}": part for slot, part in own.items()}
