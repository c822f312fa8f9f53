"""The training loop: runs a method's phases on one client's examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice, repeat

import torch
from torch import Tensor

from clients.training.account import Account
from clients.training.gradients import Gradients
from clients.training.optimizers import optimizer_of
from clients.training.private_steps import noise_in_update, private_steps
from clients.training.view import ForwardPass
from fedpers.compute import computing_in
from fedpers.config import Config
from fedpers.data import Examples
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Part, Parts
from fedpers.phases import Phase
from fedpers.seeding import torch_generator


class Trainer(Gradients):
    """Trains and predicts with one resident model on the examples of one client.

    Args:
        model: the resident model; its slots are overwritten.
        algorithm: the method, for its forward pass.
        examples: the client's training examples; moved to the model's device if they are not there.
        server_round: for the learning rate and the seeds.
        client: for the seeds.
        account: with privacy, what may be released; the round has been charged to it.
        validation: the client's validation examples.
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
        validation: Examples | None = None,
    ) -> None:
        super().__init__(config, model, algorithm, examples, server_round, client, account)
        self.noise: dict[str, float] = {}  # of a part's scalars, in standard deviations
        self.broken: dict[str, Exception] = {}  # phases that changed nothing, see ``run``
        self.steps = 0  # of gradient descent, as far as batches were taken
        self._validation = validation
        self._optimizers: dict[str, torch.optim.Optimizer] = {}  # of phases taken step by step

    @property
    def validation(self) -> Examples:
        """The client's validation examples, for choices that stay on the client.

        Raises:
            ClientError: a released phase is being trained; it may read the training examples alone.
        """
        if self._releasing:
            raise ClientError(
                "trainer.validation: a released phase reads it, whose account pays for training "
                "examples alone; make what stays on the client of it, outside of the phase"
            )
        if self._validation is None:
            return self.examples.take(torch.arange(0, device=self.device))
        return self._validation.to(self.device)

    def run(self, phase: Phase, working: Parts) -> Parts:
        """Train one phase; its trained parts are replaced in the result.

        Under privacy a phase that is not released changes nothing where it breaks down: would it
        cost the client its round, that the update is missing would tell of the data.

        Raises:
            ClientError: as in ``check_finite``, or a released phase drew what can be guessed.
        """

        def descend(reference: Outputs | None) -> None:
            with self._drawing(phase):
                self.losses[phase.name] = self._descend(phase, working, reference)

        return self._unless_broken(phase, working, self.examples, descend)

    def step(self, phase: Phase, working: Parts, batch: Tensor) -> Parts:
        """One gradient step on some examples, by the phase's optimiser, whose momentum goes on from
        step to step of this round; steps on all ``batches`` are what ``run`` does.

        Args:
            batch: indices of the examples, [n].

        Raises:
            ClientError: as in ``run``; or the phase is released, and the round private.
        """
        self._check_free(phase, "step")
        chosen = self.examples.take(batch.to(self.device))

        def descend(reference: Outputs | None) -> None:
            parameters, share = self._only(phase.trains), self._share(phase)
            known = (phase, parameters, share, self.config, self.server_round)
            optimizer = self._optimizers.get(phase.name) or optimizer_of(*known)
            self._optimizers[phase.name] = optimizer
            anchors = self._anchors(phase, working)
            with self._drawing(phase, self._drawn[phase.name]):
                loss = self._step(phase, optimizer, anchors, chosen, reference)
            self._drawn[phase.name] += 1
            self._note(phase, len(chosen), float(loss))

        return self._unless_broken(phase, working, chosen, descend)

    def _share(self, phase: Phase) -> float:
        return 1.0 if phase.blend is None else phase.blend[1]

    def _unless_broken(
        self,
        phase: Phase,
        working: Parts,
        examples: Examples,
        descend: Callable[[Outputs | None], None],
    ) -> Parts:
        released = phase.released and self.account is not None
        if len(examples) == 0 and not released:  # a client without examples breaks nothing
            return working
        self._releasing = released
        try:
            return working | self._trained(phase, working, examples, descend)
        except Exception as error:
            if not self.config.privacy.enabled or phase.released:
                raise
            self.broken[phase.name] = error
            return working
        finally:
            self._releasing = False

    def _trained(
        self,
        phase: Phase,
        working: Parts,
        examples: Examples,
        descend: Callable[[Outputs | None], None],
    ) -> dict[str, Part]:
        """The parts that a phase trains, trained."""
        blend, share = phase.blend or ({}, 1.0)
        reference = None
        if phase.reference is not None and len(examples):
            # It is frozen and nothing in it is random: once for all epochs is enough.
            reference = self.outputs(phase.reference, working, examples.x)
        self._fill(phase.model, working)
        for slot, part in blend.items():
            own, frozen = working[phase.model[slot]], working[part].vector
            self.model.write(slot, own.like(share * own.vector + (1 - share) * frozen))
        descend(reference)
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

    def _descend(self, phase: Phase, working: Parts, reference: Outputs | None) -> float:
        """Gradient descent on the filled model; returns the mean loss over all steps."""
        parameters, share = self._only(phase.trains), self._share(phase)
        if phase.released and self.account is not None:
            return self._descend_privately(phase, working, reference, share)
        optimizer = optimizer_of(phase, parameters, share, self.config, self.server_round)
        anchors = self._anchors(phase, working)
        # Summed where they are: no step waits for its loss.
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for drawn in self.batches(phase):
            batch = drawn.to(self.device, non_blocking=True)
            seen = None if reference is None else reference.take(batch)
            loss = self._step(phase, optimizer, anchors, self.examples.take(batch), seen)
            total.add_(loss, alpha=len(batch))
            count += len(batch)
        return float(total) / max(count, 1)

    def _step(
        self,
        phase: Phase,
        optimizer: torch.optim.Optimizer,
        anchors: list[tuple[torch.nn.Parameter, Tensor]],
        chosen: Examples,
        reference: Outputs | None,
    ) -> Tensor:
        """One step of the filled model; returns the mean loss per sample, without what looks across
        the batch."""
        outputs = self._forward(chosen.x)
        loss: Tensor = phase.objective(self.task)(outputs, chosen.y, reference).mean()
        mean = loss.detach()
        if phase.batch_loss is not None:
            loss = loss + phase.batch_loss(outputs, chosen.y, reference)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._penalise(phase, anchors)
        optimizer.step()
        return mean

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
        anchors = self._anchors(phase, working)
        optimizer = optimizer_of(
            phase, parameters, share, self.config, self.server_round, privacy.lr
        )
        release = self.account.take_phase()
        self.steps += release.steps
        expected = self.account.expected(len(self.examples))
        spread = noise_in_update(optimizer, release, privacy.max_grad_norm, expected)
        if spread is not None and not phase.blend:
            self.noise |= dict.fromkeys((phase.model[slot] for slot in phase.trains), spread)
        return private_steps(
            self.model,
            parameters,
            optimizer,
            self._losses(phase, reference),
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

    def batches(self, phase: Phase) -> Iterator[Tensor]:
        """The indices of the examples in each batch of a phase, in its order; empty ones, one for
        each of its ``gradients``, where samples are nobody's to see."""
        if phase.released and self.account is not None:
            return repeat(torch.arange(0), phase.gradients or 0)
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
        return self._counted(islice(batches, phase.steps))

    def _counted(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            self.steps += 1
            yield batch

    def _anchors(self, phase: Phase, working: Parts) -> list[tuple[torch.nn.Parameter, Tensor]]:
        if phase.prox is None:
            return []
        pairs = []
        for slot, part in phase.prox.anchor.items():
            anchor = Part(working[part].layout, working[part].vector.to(self.device))
            pairs += list(zip(self.model.trainable([slot]), anchor.values(), strict=True))
        return pairs
