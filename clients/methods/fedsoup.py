"""FedSoup (Chen et al., MICCAI 2023, arXiv 2307.10507): a client's mean of the global models that
help it, chosen on its validation examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from clients.base import LocalAlgorithm, algorithms
from clients.training.trainer import Trainer
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Part, Parts, combine
from fedpers.phases import Phase

SOUP = "personal.soup."
COUNT = "personal.models"  # how many are in the soup


@dataclass
class FedSoupParams:
    """``start``: the share of the rounds after which global models may enter the soup (0.75)."""

    start: float = setting(0.75, least=0, most=1)


@algorithms.register("fedsoup")
class FedSoup(LocalAlgorithm):
    """With the soup P of m global models, after training w from the global model g:

    own = (w + m P) / (m + 1), wider = (w + m P + g) / (m + 2); where ``wider`` has the smaller loss
    on the client's validation examples g enters: P <- (m P + g) / (m + 1), and ``wider`` is the
    personal model, else ``own`` is.

    What is sent is w, not the soup (the paper's), so that a choice by validation examples, which no
    noise covers, stays on the client. Chosen on validation, where the published code takes test.
    """

    Params = FedSoupParams
    keeps = ("body", "head")
    accounted = True  # the choice flows into nothing that is sent
    scored = "after local training"

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the soup, and the round that it is."""
        soup = personal.only(name for name in personal if name.startswith((SOUP, COUNT)))
        now = Part.of({"round": torch.tensor([float(context.server_round)])})
        return super().receive(broadcast, personal, context) | soup | {"round": now}

    def phases(self) -> Sequence[Phase]:
        """Everything together."""
        return [self.shared_phase()]

    def conclude(self, working: Parts, trainer: Trainer) -> Parts:
        """The personal model, and the soup; before ``start`` it is the model just trained."""
        trained = working.only(self.keeps)
        if float(working["round"].vector) <= self.params.start * self.config.rounds:
            return working | under("personal.", trained)
        m = float(working[COUNT].vector) if COUNT in working else 0.0
        soup = Parts({slot: working[f"{SOUP}{slot}"] for slot in self.keeps}) if m else trained
        received = Parts({slot: working[f"received.{slot}"] for slot in self.keeps})
        own = mean([(1, trained), (m, soup)])
        wider = mean([(1, trained), (m, soup), (1, received)])
        enters = self.loss(wider, working, trainer) < self.loss(own, working, trainer)
        if enters:
            soup, m, own = mean([(m, soup), (1, received)]), m + 1, wider
        kept = under(SOUP, soup) | {COUNT: Part.of({"models": torch.tensor([m])})}
        return working | under("personal.", own) | kept

    def loss(self, parts: Parts, working: Parts, trainer: Trainer) -> float:
        """The mean loss of a model on the validation examples; 0 where there are none, so that
        nothing enters."""
        held = trainer.validation
        if len(held) == 0:
            return 0.0
        outputs = trainer.outputs(self.branch(()), working | parts, held.x)
        return float(self.task.loss(outputs, held.y).mean())

    def filled(self, mode: str) -> Mapping[str, str]:
        """Personal: own or wider mean. Global: as received."""
        return self.branch(self.keeps if mode == "personal" else ())


def mean(weighed: Sequence[tuple[float, Parts]]) -> Parts:
    """The mean of models with weights, which need not add up to 1."""
    weights = torch.tensor([[weight for weight, _ in weighed]])
    return combine(weights / weights.sum(), [parts for _, parts in weighed])[0]


def under(prefix: str, parts: Parts) -> Parts:
    """The parts by longer names."""
    return Parts({f"{prefix}{slot}": part for slot, part in parts.items()})
