"""PerAda (Xie et al., CVPR 2024, arXiv 2302.06637): the clients' ensemble distilled into one
adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedpers.config import Config, setting
from fedpers.data import FederatedData
from fedpers.errors import ConfigError
from fedpers.models import PersonalModel
from fedpers.parts import Layout, Part, Parts
from fedpers.seeding import torch_generator
from strategies.base import Needs, PersonalizedStrategy, strategies

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

    def __init__(self, config: Config, model: PersonalModel, data: FederatedData) -> None:
        super().__init__(config, model, data)
        self.weights = self.params.weights

    @cached_property
    def inputs(self) -> Tensor:
        """The public examples as the first trained layer reads them, which never changes."""
        self.model.after_stem = True
        return self.model.prepared(self.public.x)

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
    def needs(cls, params: PerAdaParams) -> Needs:
        """What the clients' models make of the public examples, if it distils."""
        if not params.distill:
            return Needs()
        return Needs(derived=(LOGITS,), instead="set strategy.params.distill=false")

    def derived_layouts(self) -> Mapping[str, Layout]:
        """Of logits [public, outputs]."""
        return {LOGITS: Layout(((LOGITS, (len(self.public), self.task.outputs)),))}

    def derive(self, name: str, update: Parts) -> Part:
        """The scores on the public examples, divided by 4 as clients do."""
        return Part.of({LOGITS: self._scores(update) / LOGITS_SCALE})

    def refine(self, server_round: int) -> None:
        """Distil the ensemble into the mean; keep the result if it is nearer to the ensemble.

        Where the server cannot read updates, a node opens two means for it, of the models and of
        their logits on the public examples, and no single client's: the server learns the global
        model and what the ensemble makes of public data.
        """
        params = self.params
        if not params.distill:
            return
        mean = self.parts = self.channel.reveal(self.parts)
        if server_round > params.kd_rounds:
            return
        self._teacher = LOGITS_SCALE * self.channel.derived(LOGITS)[LOGITS]
        generator = torch_generator(self.config.seed, "distillation", server_round)
        order = torch.randperm(len(self.public), generator=generator)
        held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
        before = self._divergence(self._scores(mean), held_out)
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
