"""The training loop: runs a method's phases on one client's examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from clients.training.account import LABELS, Account
from clients.training.private_steps import noise_in_update, private_steps
from fedpers.compute import computing_in
from fedpers.config import Config
from fedpers.data import Examples
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Part, Parts
from fedpers.phases import Phase
from fedpers.privacy.noise import Source
from fedpers.seeding import drawn_from, seeded, torch_generator

EVALUATION_BATCH = 256  # what stays in a core's cache; 1024 takes an eighth longer


class ForwardPass(Protocol):
    """What of a method is needed to compute with a model: see ``clients.base.LocalAlgorithm``."""

    slots: tuple[str, ...]

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The outputs for a batch x of the model, filled as it is."""


class ModelView:
    """Runs one resident model, and sees neither examples nor the account.

    Args:
        model: the resident model; its slots are overwritten.
        algorithm: the method, for its forward pass.
    """

    def __init__(self, model: PersonalModel, algorithm: ForwardPass) -> None:
        self.model, self.algorithm = model, algorithm
        self.device, self.task = model.device, model.task

    def outputs(self, filling: Mapping[str, str], working: Parts, x: Tensor) -> Outputs:
        """Features [n, d] and scores [n, ...] of the model filled with working parts, on its
        device.

        Raises:
            ClientError: a slot is not filled, and would hold what was there before.
        """
        self._fill(filling, working)
        with torch.no_grad():
            pieces = [
                self.algorithm.forward(self.model, piece.to(self.device))
                for piece in torch.split(x, EVALUATION_BATCH)
            ]
        return Outputs.cat(pieces)

    def _fill(self, filling: Mapping[str, str], working: Parts) -> None:
        if missing := [slot for slot in self.algorithm.slots if slot not in filling]:
            raise ClientError(f"model: nothing is said to fill the slot {missing[0]!r}")
        fill(self.model, filling, working)


class Trainer(ModelView):
    """Trains and predicts with one resident model on the examples of one client.

    Args:
        model: the resident model; its slots are overwritten.
        algorithm: the method, for its forward pass.
        examples: the client's training examples; moved to the model's device if they are not there.
        server_round: for the learning rate and the seeds.
        client: for the seeds.
        account: with privacy, what may be released; the round has been charged to it.
    """

    def __init__(
        self,
        config: Config,
        model: PersonalModel,
        algorithm: ForwardPass,
        examples: Examples,
        *,
        server_round: int,
        client: str,
        account: Account | None = None,
    ) -> None:
        super().__init__(model, algorithm)
        self.config = config
        self.examples = examples.to(self.device)
        self.server_round, self.client = server_round, client
        self.account = account
        self.losses: dict[str, float] = {}
        self.noise: dict[str, float] = {}  # of a part's scalars, in standard deviations
        self.broken: dict[str, Exception] = {}  # phases that changed nothing, see ``run``

    def run(self, phase: Phase, working: Parts) -> Parts:
        """Train one phase; its trained parts are replaced in the result.

        Under privacy a phase that is not released changes nothing where it breaks down: would it
        cost the client its round, that the update is missing would tell of the data.

        Raises:
            ClientError: as in ``check_finite``, or a released phase drew what can be guessed.
        """
        released = phase.released and self.account is not None
        if len(self.examples) == 0 and not released:  # a client without examples breaks nothing
            return working
        try:
            return working | self._trained(phase, working)
        except Exception as error:
            if not self.config.privacy.enabled or phase.released:
                raise
            self.broken[phase.name] = error
            return working

    def _trained(self, phase: Phase, working: Parts) -> dict[str, Part]:
        """The parts that a phase trains, trained."""
        blend, share = phase.blend or ({}, 1.0)
        reference = None
        if phase.reference is not None and len(self.examples):
            # It is frozen and nothing in it is random: once for all epochs is enough.
            reference = self.outputs(phase.reference, working, self.examples.x)
        self._fill(phase.model, working)
        for slot, part in blend.items():
            own, frozen = working[phase.model[slot]], working[part].vector
            self.model.write(slot, own.like(share * own.vector + (1 - share) * frozen))
        with self._drawing(phase):
            self.losses[phase.name] = self._descend(phase, working, reference, share)
        trained = {phase.model[slot]: self.model.read(slot) for slot in phase.trains}
        for slot, part in blend.items():
            mixed, frozen = trained[phase.model[slot]], working[part].vector
            trained[phase.model[slot]] = mixed.like((mixed.vector - (1 - share) * frozen) / share)
        self.check_finite(phase, trained)
        return trained

    def check_finite(self, phase: Phase, trained: Mapping[str, Part]) -> None:
        """Refuse what a phase trained where it broke down.

        Not what is released under privacy: it is made of noised sums, and is judged when it leaves.
        Training it once more would draw other noise, by a choice that nobody was charged for.

        Raises:
            ClientError: a part is no longer finite.
        """
        broken = Parts(trained).first_not_finite()
        if broken is not None and not (phase.released and self.account is not None):
            raise ClientError(
                f"phase {phase.name!r}: part {broken!r} is no longer finite; "
                "lower training.lr, or look for odd values in this client's data"
            )

    @contextmanager
    def _drawing(self, phase: Phase) -> Iterator[None]:
        """Within, what is random in a forward pass is known, or secret where it is released.

        Raises:
            ClientError: a released phase drew from torch's generator, of which 32 bits are secret.
        """
        path = ("forward", self.server_round, self.client, phase.name)
        if self.account is None or not phase.released:
            with seeded(self.config.seed, *path, device=self.device):
                yield
            return
        before = drawn_from(self.device)
        self.model.source = self.account.sources(*path)
        try:
            yield
        finally:
            self.model.source = None
        if drawn_from(self.device) != before:
            raise ClientError(
                f"phase {phase.name!r}: a forward pass drew from torch's generator, which can be "
                "guessed; draw by model.uniform"
            )

    def _descend(
        self, phase: Phase, working: Parts, reference: Outputs | None, share: float
    ) -> float:
        """Gradient descent on the filled model; returns the mean loss over all steps."""
        x, y = self.examples.x, self.examples.y
        parameters = self._only(phase.trains)
        if phase.released and self.account is not None:
            return self._descend_privately(phase, working, reference, share)
        anchors = self._anchors(phase, working)
        optimizer, objective = self.optimizer(phase, parameters, share), phase.objective(self.task)
        # Summed where they are: no step waits for its loss.
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for drawn in self.batches(phase):
            batch = drawn.to(self.device, non_blocking=True)
            outputs = self._forward(x[batch])
            seen = None if reference is None else reference.take(batch)
            loss = objective(outputs, y[batch], seen).mean()
            total.add_(loss.detach(), alpha=len(batch))
            count += len(batch)
            if phase.batch_loss is not None:
                loss = loss + phase.batch_loss(outputs, y[batch], seen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._penalise(phase, anchors)
            optimizer.step()
        return float(total) / max(count, 1)

    def _forward(self, x: Tensor) -> Outputs:
        """The forward pass of training, in ``training.precision``; the outputs are float32."""
        with computing_in(self.config.training.precision, self.device):
            outputs = self.algorithm.forward(self.model, x, training=True)
        return outputs.float()

    def _descend_privately(
        self, phase: Phase, working: Parts, reference: Outputs | None, share: float
    ) -> float:
        """The same under DP-SGD; the penalty's gradient is added to the noised one."""
        assert self.account is not None
        privacy = self.config.privacy
        parameters = self._only(phase.trains)
        anchors, objective = self._anchors(phase, working), phase.objective(self.task)

        def losses(drawn: Tensor) -> Tensor:
            batch = drawn.to(self.device, non_blocking=True)
            outputs = self.algorithm.forward(self.model, self.examples.x[batch], training=True)
            seen = None if reference is None else reference.take(batch)
            return objective(outputs, self.examples.y[batch], seen)

        optimizer = self.optimizer(phase, parameters, share, privacy.lr)
        release = self.account.take_phase()
        expected = self.account.expected(len(self.examples))
        spread = noise_in_update(optimizer, release, privacy.max_grad_norm, expected)
        if spread is not None and not phase.blend:
            self.noise |= dict.fromkeys((phase.model[slot] for slot in phase.trains), spread)
        return private_steps(
            self.model,
            parameters,
            optimizer,
            losses,
            examples=len(self.examples),
            expected=expected,
            release=release,
            max_grad_norm=privacy.max_grad_norm,
            after_noise=lambda: self._penalise(phase, anchors),
            source=self._source(phase.name),
        )

    def _penalise(self, phase: Phase, anchors: list[tuple[torch.nn.Parameter, Tensor]]) -> None:
        """Add the prox's gradient mu (w - anchor)."""
        for parameter, anchor in anchors:
            assert parameter.grad is not None and phase.prox is not None
            parameter.grad.add_(parameter.detach() - anchor, alpha=phase.prox.mu)

    def release_counts(self, contributions: Tensor, what: str = LABELS) -> Tensor:
        """Counts [C] of the client's examples that are to be sent.

        Under privacy what an example adds is clipped to norm 1, and the sum is noised for that.

        Args:
            contributions: what each training example adds, in their order, [n, C] on the CPU.

        Raises:
            ClientError: not one row an example; or, under privacy, as ``Account.noised``.
        """
        if contributions.ndim != 2 or len(contributions) != len(self.examples):
            got, n = tuple(contributions.shape), len(self.examples)
            raise ClientError(f"counts: got {got}, takes what each example adds, [{n}, C]")
        if self.account is None:
            return contributions.sum(0)
        source = self._source(what)
        finite = torch.isfinite(contributions).all(1, keepdim=True)
        contributions = torch.where(finite, contributions, 0.0)
        factors = (1 / contributions.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
        source.witness([contributions], factors)
        return self.account.noised(what, factors @ contributions, source)

    def _source(self, purpose: str) -> Source:
        """What is secret in this round and serves one purpose."""
        assert self.account is not None
        return self.account.sources(self.server_round, self.client, purpose)

    def gradient(self, phase: Phase, working: Parts, batch: Tensor) -> tuple[Parts, float]:
        """The gradient of a phase's mean loss on some examples, per trained slot, and the loss.

        Args:
            batch: indices of the examples, [n].
        """
        self._fill(phase.model, working)
        for parameter in self._only(phase.trains):
            parameter.grad = torch.zeros_like(parameter)
        chosen = self.examples.take(batch.to(self.device))
        outputs = self.algorithm.forward(self.model, chosen.x, training=True)
        loss = phase.objective(self.task)(outputs, chosen.y, None).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = {}
        for slot in phase.trains:
            pieces = [
                p.grad.reshape(-1) for p in self.model.trainable([slot]) if p.grad is not None
            ]
            gradients[slot] = working[phase.model[slot]].like(torch.cat(pieces).cpu())
        return Parts(gradients), float(loss.detach())

    def _only(self, slots: Sequence[str]) -> list[torch.nn.Parameter]:
        """The parameters of some slots, after freezing those of all others."""
        for slot in self.model.slots:
            for parameter in self.model.trainable([slot]):
                parameter.requires_grad_(slot in slots)
        return self.model.trainable(slots)

    def batches(self, phase: Phase) -> Iterator[Tensor]:
        """The indices of the examples in each batch of a phase, in its order."""
        generator = torch_generator(
            self.config.seed, "batches", self.server_round, self.client, phase.name
        )
        size = phase.batch_size or self.config.training.batch_size
        epochs = self.config.training.epochs if phase.epochs is None else phase.epochs
        batches = (
            batch
            for _ in range(epochs)
            for batch in torch.split(torch.randperm(len(self.examples), generator=generator), size)
        )
        return islice(batches, phase.steps)

    def optimizer(
        self,
        phase: Phase,
        parameters: Sequence[torch.nn.Parameter],
        share: float,
        private_lr: float | None = None,
    ) -> torch.optim.Optimizer:
        """The optimiser of a phase, over ``parameters`` that hold ``share`` of what is trained."""
        training = self.config.training
        lr = private_lr or phase.lr or training.lr
        if phase.decays:
            lr = decayed(lr, self.config, self.server_round)
        if training.optimizer == "sgd":
            # The model holds e = share * v + (1 - share) * w. A step on v moves e by share times
            # it, and the gradient for v is share times that for e: SGD on v is SGD on e at
            # lr * share^2.
            return torch.optim.SGD(
                parameters,
                lr=lr * share**2,
                momentum=training.momentum,
                weight_decay=training.weight_decay,
            )
        adam = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
        # Adam's step does not depend on the gradient's scale: one factor is left.
        return adam(parameters, lr=lr * share, weight_decay=training.weight_decay)

    def _anchors(self, phase: Phase, working: Parts) -> list[tuple[torch.nn.Parameter, Tensor]]:
        if phase.prox is None:
            return []
        pairs = []
        for slot, part in phase.prox.anchor.items():
            anchor = Part(working[part].layout, working[part].vector.to(self.device))
            pairs += list(zip(self.model.trainable([slot]), anchor.values(), strict=True))
        return pairs


def decayed(lr: float, config: Config, server_round: int) -> float:
    """The learning rate of a round: constant, or a half cosine from ``lr`` down to 0."""
    if config.training.lr_decay == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * (server_round - 1) / config.rounds))
    return lr


def fill(model: PersonalModel, filling: Mapping[str, str], working: Parts) -> None:
    """Write working parts into the model's slots."""
    for slot, part in filling.items():
        model.write(slot, working[part])
