"""FedALA (Zhang et al., AAAI 2023, arXiv 2212.01197): adaptive local aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev

import torch

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.models import PersonalModel
from fedpers.parts import Part, Parts
from fedpers.phases import Phase
from fedpers.seeding import torch_generator


@dataclass
class FedALAParams:
    """Settings of the learned initialisation, with the paper's values.

    ``layers``: the slots that are mixed element by element (the paper's top p layers); those below
    are overwritten by the global ones. ``eta``: the rate of the weights. ``sample``: the share of
    the local examples used. ``first_epochs`` and ``tolerance``: the first time, the weights are
    trained until the last ten losses spread less than ``tolerance``, at most so many epochs.
    """

    layers: str = setting("head", choices=("head", "all"))
    eta: float = setting(1.0, above=0)
    sample: float = setting(0.8, above=0, most=1)
    first_epochs: int = setting(10, least=1)
    tolerance: float = setting(0.1, above=0)


@algorithms.register("fedala")
class FedALA(LocalAlgorithm):
    """theta_i <- theta_i + (theta - theta_i) * W, element by element, with learned W in [0, 1].

    W <- clip(W - eta grad L(theta_i) * (theta - theta_i)) on some of the local data (equation 5),
    where theta_i is the model of the client's last round and theta the global one. Then all of it
    is trained and sent. W starts at 1, where the client starts from the global model.

    Scored as initialised, before the round's training.
    """

    Params = FedALAParams
    keeps = ("body", "head")
    accounted = False  # W is learned from the data and shapes what is sent
    scored = "after local aggregation, before local training"

    def check(self, model: PersonalModel) -> None:
        """Without a head there is nothing to mix but all of it."""
        if self.params.layers == "head":
            self.needs_head(model)

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with W and the initialisation ``mixed.*`` that it gives."""
        working = super().receive(broadcast, personal, context)
        for slot in self.mixed_slots:
            part = working[f"received.{slot}"]
            ones = part.like(torch.ones_like(part.vector))
            weights = personal.get(f"personal.weights.{slot}", ones)
            working = working | {f"personal.weights.{slot}": weights}
        return working | self.mixture(working)

    @property
    def mixed_slots(self) -> tuple[str, ...]:
        """The slots that are mixed."""
        return ("head",) if self.params.layers == "head" else self.keeps

    def mixture(self, working: Parts) -> Parts:
        """The initialisation: mixed slots by W, the others as received."""
        mixed: dict[str, Part] = {}
        for slot in self.slots:
            new = working[f"received.{slot}"]
            mixed[f"mixed.{slot}"] = new
            if slot in self.mixed_slots:
                old = working[f"personal.{slot}"].vector
                weights = working[f"personal.weights.{slot}"].vector
                mixed[f"mixed.{slot}"] = new.like(old + (new.vector - old) * weights)
        return Parts(mixed)

    def phases(self) -> Sequence[Phase]:
        """Everything is trained from the learned initialisation, and sent."""
        return [self.shared_phase()]

    def prepare(self, working: Parts, trainer: Trainer) -> Parts:
        """Learn W, and start from the mixture."""
        working = self.learn_weights(working, trainer)
        return working | {slot: working[f"mixed.{slot}"] for slot in self.slots}

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """What was trained is mixed with the next global model."""
        return working | {f"personal.{slot}": working[slot] for slot in self.slots}

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """Learn W for what was received, as before training; a newcomer has no model to mix."""
        if batches is not None:
            return super().tune(working, trainer, batches)
        return self.learn_weights(working, trainer)

    def filled(self, mode: str) -> Mapping[str, str]:
        """The personal model is the initialisation."""
        mixed = {slot: f"mixed.{slot}" for slot in self.slots}
        return mixed if mode == "personal" else self.branch(())

    def learn_weights(self, working: Parts, trainer: Trainer) -> Parts:
        """Gradient steps on W, a batch at a time."""
        pairs = [(working[f"received.{s}"], working[f"personal.{s}"]) for s in self.mixed_slots]
        # In a client's first round its own model is the global one: there is nothing to weigh.
        differ = any(not torch.equal(new.vector, old.vector) for new, old in pairs)
        if not differ or not len(trainer.examples):
            return working
        first = all(
            bool((working[f"personal.weights.{s}"].vector == 1).all()) for s in self.mixed_slots
        )
        mixed = {slot: f"mixed.{slot}" for slot in self.slots}
        phase = Phase(name="weights", model=mixed, trains=self.mixed_slots, released=True)
        path = ("weights", trainer.server_round, trainer.client)
        generator = torch_generator(self.config.seed, *path)
        count = max(1, round(self.params.sample * len(trainer.examples)))
        sample = torch.randperm(len(trainer.examples), generator=generator)[:count]
        losses: list[float] = []
        for _ in range(self.params.first_epochs if first else 1):
            for batch in torch.split(sample, self.config.training.batch_size):
                gradient, loss = trainer.gradient(phase, working, batch, trains=False)
                losses.append(loss)
                working = self.step_weights(working, gradient)
            if len(losses) > 10 and pstdev(losses[-10:]) < self.params.tolerance:
                break
        return working

    def step_weights(self, working: Parts, gradient: Parts) -> Parts:
        """One step of equation 5, and the mixture that follows from it."""
        for slot in self.mixed_slots:
            gap = working[f"received.{slot}"].vector - working[f"personal.{slot}"].vector
            weights = working[f"personal.weights.{slot}"]
            moved = weights.vector - self.params.eta * gradient[slot].vector * gap
            working = working | {f"personal.weights.{slot}": weights.like(moved.clamp(0, 1))}
        return working | self.mixture(working)
