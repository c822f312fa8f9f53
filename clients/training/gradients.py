"""Gradients of a phase on one client's examples: plain ones, private ones, and its loss as a
function, of which any can be taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from clients.training.account import Account
from clients.training.objective import Objective, objective
from clients.training.private_steps import private_steps
from clients.training.releasing import Releasing
from clients.training.view import ForwardPass
from fedpers.config import Config
from fedpers.data import Examples
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Parts
from fedpers.phases import Phase
from fedpers.seeding import drawn_from, seeded


class Gradients(Releasing):
    """A view that takes gradients of phases; see ``Trainer``."""

    def __init__(
        self,
        config: Config,
        model: PersonalModel,
        algorithm: ForwardPass,
        examples: Examples,
        server_round: int,
        client: str,
        account: Account | None,
    ) -> None:
        super().__init__(config, model, algorithm, examples, server_round, client, account)
        self._releasing = False  # a released phase is at work
        self._drawn = Counter[str]()  # forward passes beside a phase's run, by phase
        self.losses: dict[str, float] = {}
        """By phase, the mean over what was trained on; the mean of them is the client's loss."""
        self._seen = Counter[str]()  # examples in the steps and gradients of a phase

    def gradient(
        self, phase: Phase, working: Parts, batch: Tensor, *, trains: bool = True
    ) -> tuple[Parts, float]:
        """The gradient of a phase's mean loss on some examples, per trained slot, and the loss.

        Args:
            batch: indices of the examples, [n].
            trains: it is for a step of the training, whose loss counts towards the client's, not
                for a choice beside it.

        Raises:
            ClientError: the phase is released, and the round private; or it has more than a loss.
        """
        self._check_free(phase, "gradient")
        self._check_bare(phase)
        self._fill(phase.model, working)
        parameters = self._only(phase.trains)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        chosen = self.examples.take(batch.to(self.device))
        outputs = self.algorithm.forward(self.model, chosen.x, training=True)
        loss = phase.objective(self.task)(outputs, chosen.y, None).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        pieces = [p.grad.flatten().cpu() for p in parameters if p.grad is not None]
        if trains:
            self._note(phase, len(chosen), float(loss.detach()))
        return self._by_slot(phase, working, pieces), float(loss.detach())

    def private_gradient(self, phase: Phase, working: Parts, batch: Tensor) -> Parts:
        """The gradient of a released phase's mean loss, per trained slot, to be used as the method
        likes: what is made of it may be sent.

        In a private round it is of a sample that nobody sees, clipped per example and noised as one
        step of DP-SGD is, and one of the phase's ``gradients``; ``batches`` gives as many. Else it
        is that of ``batch``.

        Args:
            batch: indices of the examples, [n].

        Raises:
            ClientError: more are taken than the phases declare; or the phase is not released, or
                has more than a loss.
        """
        if not phase.released:
            raise ClientError(f"phase {phase.name!r}: it is not released; take trainer.gradient")
        self._check_bare(phase)
        if self.account is None:
            return self.gradient(phase, working, batch)[0]
        release, which = self.account.take_gradient(), self._drawn[phase.name]
        self._drawn[phase.name] += 1
        self._fill(phase.model, working)
        parameters, found = self._only(phase.trains), list[Tensor]()

        def note() -> None:
            found.extend(p.grad.detach().flatten().cpu() for p in parameters if p.grad is not None)

        self._releasing = True
        try:
            with self._drawing(phase, which):
                loss = private_steps(
                    self.model,
                    parameters,
                    torch.optim.SGD(parameters, lr=0.0),
                    self._losses(phase, None),
                    examples=len(self.examples),
                    expected=self.account.expected(len(self.examples)),
                    release=release,
                    max_grad_norm=self.config.privacy.max_grad_norm,
                    after_noise=note,
                    source=self._source(phase.name, which),
                )
        finally:
            self._releasing = False
        self._note(phase, len(self.examples), loss)
        return self._by_slot(phase, working, found)

    def objective(self, phase: Phase, working: Parts) -> Objective:
        """A phase's mean loss as a function of what it trains, for gradients of any order: a step
        within it, and the gradient through that step (MAML; Finn et al. 2017, arXiv 1703.03400).

        Nothing is random in its forward passes, or they draw what torch's generator gives.

        Raises:
            ClientError: the phase is released, and the round private.
        """
        self._check_free(phase, "objective")
        return objective(self, phase, working, self.examples)

    def _note(self, phase: Phase, count: int, loss: float) -> None:
        """Add the mean loss on so many examples to that of their phase."""
        before, self._seen[phase.name] = self._seen[phase.name], self._seen[phase.name] + count
        total = before * self.losses.get(phase.name, 0.0) + count * loss
        self.losses[phase.name] = total / max(before + count, 1)

    def _check_free(self, phase: Phase, what: str) -> None:
        """Refuse what adds no noise where noise is due."""
        if phase.released and self.account is not None:
            raise ClientError(
                f"phase {phase.name!r}: trainer.{what} adds no noise, and the phase is released; "
                "take trainer.run or trainer.private_gradient"
            )

    def _check_bare(self, phase: Phase) -> None:
        """Refuse to leave out in silence what a phase adds to its loss."""
        more = ("batch_loss", "prox", "reference", "blend")
        if added := [name for name in more if getattr(phase, name) is not None]:
            raise ClientError(
                f"phase {phase.name!r}: a single gradient is of its loss alone, without "
                f"{added[0]}; take trainer.objective"
            )

    def _losses(self, phase: Phase, reference: Outputs | None) -> Callable[[Tensor], Tensor]:
        """From indices [n], on the CPU, to the losses [n] of the filled model."""
        objective = phase.objective(self.task)

        def losses(drawn: Tensor) -> Tensor:
            batch = drawn.to(self.device, non_blocking=True)
            outputs = self.algorithm.forward(self.model, self.examples.x[batch], training=True)
            seen = None if reference is None else reference.take(batch)
            return objective(outputs, self.examples.y[batch], seen)

        return losses

    def _by_slot(self, phase: Phase, working: Parts, pieces: list[Tensor]) -> Parts:
        """A vector for each trained slot, from one for each of its parameters."""
        whole, first = torch.cat(pieces), 0
        found = {}
        for slot in phase.trains:
            part = working[phase.model[slot]]
            found[slot] = part.like(whole[first : first + part.layout.size])
            first += part.layout.size
        return Parts(found)

    @contextmanager
    def _drawing(self, phase: Phase, *more: int) -> Iterator[None]:
        """Within, what is random in a forward pass is known, or secret where it is released.

        Args:
            more: which of several.

        Raises:
            ClientError: a released phase drew from torch's generator, of which 32 bits are secret.
        """
        path: tuple[int | str, ...] = ("forward", self.server_round, self.client, phase.name, *more)
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

    def _only(self, slots: Sequence[str]) -> list[torch.nn.Parameter]:
        """The parameters of some slots, after freezing those of all others."""
        for slot in self.model.slots:
            for parameter in self.model.trainable([slot]):
                parameter.requires_grad_(slot in slots)
        return self.model.trainable(slots)
