"""PerAda (Xie et al., CVPR 2024, arXiv 2302.06637): the clients' ensemble distilled into one
adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.config import Config, setting
from fedpers.data import FederatedData
from fedpers.errors import ConfigError
from fedpers.models import PersonalModel
from fedpers.parts import Layout, Parts
from fedpers.records import Row
from fedpers.seeding import torch_generator
from strategies.base import PersonalizedStrategy, strategies
from strategies.mixing import Mixing
from strategies.sealing import plain

log = logging.getLogger("fedpers")

LOGITS, LOGITS_SCALE = "logits", 4.0  # sent divided by it, to lie within encryption.range
CHUNK = 256  # public examples in one forward pass


@dataclass
class PerAdaParams:
    """The distillation: on or off, Adam's rate, steps a round, batch, and in how many rounds.

    ``weights``: of both means, the models' and the teachers' logits: ``equal``, as published, or by
    number of ``examples``.
    """

    weights: str = setting("equal", choices=("equal", "examples"))
    distill: bool = True
    kd_lr: float = setting(0.001, above=0)
    kd_steps: int = setting(100, least=1)
    kd_batch: int = setting(256, least=1)
    kd_rounds: int = setting(30, least=1)


@strategies.register("perada")
class PerAda(PersonalizedStrategy):
    """The server's round (Algorithm 1): w_bar = (1/K) sum_k theta_k, then distillation.

    Minimise KL(softmax(mean_k f(x; theta_k)) || softmax(f(x; w))) over unlabelled public x,
    starting at w_bar; of numbers, the squared difference. By default neither mean is weighted by
    examples, as in the published code; where they are, teachers weigh as their models do, for the
    ensemble is what w_bar stands for.

    That code keeps the distilled w only if it is better on labelled data at the server, which the
    paper's setting does not have. Here w is kept only if its divergence to the ensemble on public
    examples held out from the distillation has fallen. Teachers are in eval mode (the published
    code leaves dropout on in them).
    """

    Params = PerAdaParams
    encrypted_form = True

    def __init__(self, config: Config, model: PersonalModel, data: FederatedData) -> None:
        super().__init__(config, model, data)
        self.weights = self.params.weights
        # What the layers below the first trained one make of the public examples never changes.
        self.inputs = model.stem(self.public.x)
        model.after_stem = True

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """As the base; distillation needs public examples."""
        params = super().check(config, data)
        if params.distill and len(data.public) < 10:
            cure = "or set strategy.params.distill=false"
            got, takes = config.data.public_fraction, "a fraction with 10 public examples or more"
            raise ConfigError("data.public_fraction", got, takes, cure)
        return params

    @classmethod
    def reads_updates(cls, params: PerAdaParams) -> str | None:
        """The teachers, if it distils."""
        return (
            "every client's logits, set strategy.params.distill=false" if params.distill else None
        )

    def sealed_groups(self) -> list[Group]:
        """Model and, to distil from, logits on the public examples: both are averaged alike."""
        return [Group((*self.shares, *((LOGITS,) if self.params.distill else ())))]

    def sealed_layout(self, name: str) -> Layout:
        """As the base; of logits [public, classes]."""
        if name == LOGITS:
            return Layout(((LOGITS, (len(self.public), self.task.outputs)),))
        return super().sealed_layout(name)

    def combine(self, mixing: Mixing, updates: Mapping[str, Row]) -> None:
        """The mean; the single updates, as weighted in it, are the teachers of the distillation."""
        before = self.parts
        super().combine(mixing, updates)
        weights = mixing.weights[0] / mixing.weights[0].max()  # 1 where all are the same
        self.teachers = list(zip(weights.tolist(), updates.values(), strict=True))
        sums = self.parts.sealed if isinstance(self.parts, SealedParts) else ()
        if self.params.distill and any(one.terms < 2 for one in sums):
            self.unused = "the mean of a single update is not opened"
            self.parts = before

    def refine(self, server_round: int) -> None:
        """Distil the ensemble into the mean; keep the result if it is nearer to the ensemble.

        Under encryption a node opens two means for the server, of the models and of their logits on
        the public examples, and no single client's: the server learns the global model and what
        the ensemble makes of public data.
        """
        params = self.params
        if not params.distill:
            return
        if self.sealing is not None:
            if not isinstance(self.parts, SealedParts):  # as nobody's mean could be opened
                return
            opened = self.sealing.opened(self.parts)
            self.parts = opened.only(self.shares)
            mean = LOGITS_SCALE * opened[LOGITS]["logits"]
        if server_round > params.kd_rounds:
            return
        if self.sealing is None:
            total = torch.zeros(len(self.public), self.task.outputs)
            for weight, teacher in self.teachers:
                total += weight * self._scores(plain(teacher))
            mean = total / sum(weight for weight, _ in self.teachers)
        self._teacher = mean
        generator = torch_generator(self.config.seed, "distillation", server_round)
        order = torch.randperm(len(self.public), generator=generator)
        held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
        before = self._divergence(self._scores(plain(self.parts)), held_out)
        parameters = self.model.trainable(self.shares)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=params.kd_lr)
        for _ in range(params.kd_steps):
            pick = torch.randint(len(rest), (params.kd_batch,), generator=generator)
            batch = rest[pick]
            student = self.model(self.inputs[batch]).scores
            loss = self.task.divergence(student, self._teacher[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        distilled = Parts({slot: self.model.read(slot) for slot in self.shares})
        after = self._divergence(self._scores(distilled), held_out)
        if after < before:
            self.parts = distilled
        log.debug("round %d: divergence to ensemble %.4f -> %.4f", server_round, before, after)

    @torch.no_grad()
    def _scores(self, parts: Parts) -> Tensor:
        """Scores [public, outputs] of the model with these parts."""
        for slot, part in parts.items():
            self.model.write(slot, part)
        pieces = torch.split(self.inputs, CHUNK)
        return torch.cat([self.model(piece).scores for piece in pieces])

    def _divergence(self, scores: Tensor, index: Tensor) -> float:
        return float(self.task.divergence(scores[index], self._teacher[index]))
