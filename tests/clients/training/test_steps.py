"""Single steps, a phase's loss as a function, and the validation split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.methods.fedavg import FedAvg
from clients.training.trainer import Trainer
from fedpers.context import Context
from fedpers.data import ClientData, Examples
from fedpers.errors import ClientError
from fedpers.parts import Parts
from fedpers.phases import Phase, Prox

BOTH = ("body", "head")


def start(toys: Any, bound: Any, seed: int = 3) -> Parts:
    received: Parts = toys.random(bound.algorithm, BOTH, seed)
    working: Parts = bound.algorithm.receive(received, Parts(), Context("a", 1))
    return working


@pytest.mark.parametrize(
    "settings",
    [
        ["training.momentum=0.9", "training.weight_decay=0.1"],
        ["training.optimizer=adam"],
        ["training.lr_decay=cosine"],
    ],
)
def test_steps_on_all_batches_are_a_run_of_the_phase(toys: Any, settings: list[str]) -> None:
    bound = toys.bind("ditto", "training.batch_size=2", "training.epochs=3", *settings)
    working, trainer = start(toys, bound), bound.trainer
    for phase in bound.algorithm.phases():  # the first with a prox
        ran = trainer.run(phase, working)
        loss = trainer.losses.pop(phase.name)
        stepped = working
        for batch in trainer.batches(phase):
            stepped = trainer.step(phase, stepped, batch)
        for name in ran:
            assert torch.equal(ran[name].vector, stepped[name].vector)
        assert trainer.losses[phase.name] == pytest.approx(loss)


def test_the_loss_is_that_of_all_gradients(toys: Any) -> None:
    """Whether private ones or not: a method that steps by itself reports a loss as others do."""
    bound = toys.bind("fedavg")
    working, trainer, (phase,) = start(toys, bound), bound.trainer, bound.algorithm.phases()
    _, first = trainer.gradient(phase, working, torch.tensor([0, 1, 2]))
    assert trainer.losses == {phase.name: first}
    _, second = trainer.gradient(phase, working, torch.tensor([3]))
    trainer.private_gradient(phase, working, torch.tensor([3]))
    assert trainer.losses == {phase.name: pytest.approx((3 * first + 2 * second) / 5)}


def test_a_step_within_a_mixture_and_beside_a_reference(toys: Any) -> None:
    bound = toys.bind("apfl")  # trains v in share * v + (1 - share) * w
    working, trainer = start(toys, bound), bound.trainer
    phase = bound.algorithm.phases()[0]
    seen: list[int] = []

    def loss(outputs: Any, targets: torch.Tensor, reference: Any) -> torch.Tensor:
        seen.append(len(reference.scores))
        return bound.algorithm.task.loss(outputs, targets)

    phase = replace(phase, loss=loss, reference=phase.model, batch_size=3)
    batch = torch.tensor([0, 2, 1])
    (full,) = trainer.batches(replace(phase, batch_size=4))
    ran = trainer.run(replace(phase, batch_size=4), working)
    stepped = trainer.step(phase, working, full)
    for name in ran:
        torch.testing.assert_close(ran[name].vector, stepped[name].vector)
    trainer.step(phase, working, batch)
    assert seen == [4, 4, 3]


def test_a_step_by_hand(toys: Any) -> None:
    # Features (1, 2), scores (0, 0): the gradient of score 0 is 1/2 - 1, of score 1 it is 1/2.
    bound = toys.bind("fedavg", x=[[1.0, 2.0], [9.0, 9.0]], y=[0, 1])
    received = toys.parts(torch.eye(2), torch.zeros(2, 2))
    working = bound.algorithm.receive(received, Parts(), Context("a", 1))
    (phase,) = bound.algorithm.phases()
    after = bound.trainer.step(phase, working, torch.tensor([0]))
    head = after["head"]["head.weight"]
    torch.testing.assert_close(head, torch.tensor([[0.05, 0.1], [-0.05, -0.1]]))
    assert bound.trainer.losses[phase.name] == pytest.approx(0.693147, abs=1e-6)


def test_without_examples_a_step_changes_nothing(toys: Any) -> None:
    bound = toys.bind("fedavg", x=[], y=[])
    working = start(toys, bound)
    (phase,) = bound.algorithm.phases()
    assert bound.trainer.step(phase, working, torch.arange(0)) is working


# -- the objective -----------------------------------------------------------------------------


def test_the_objective_has_the_phases_gradient(toys: Any) -> None:
    bound = toys.bind("fedavg", "model.name=mlp")
    working, trainer = start(toys, bound), bound.trainer
    (phase,) = bound.algorithm.phases()
    batch = torch.tensor([0, 3])
    vectors = {slot: working[slot].vector.clone().requires_grad_(True) for slot in BOTH}
    loss = trainer.objective(phase, working)(vectors, batch)
    found = torch.autograd.grad(loss, [vectors[slot] for slot in BOTH])
    gradient, mean = trainer.gradient(phase, working, batch)
    assert float(loss.detach()) == pytest.approx(mean)
    for slot, own in zip(BOTH, found, strict=True):
        torch.testing.assert_close(own, gradient[slot].vector)


def test_a_gradient_through_a_step_by_hand(toys: Any) -> None:
    """f(w) = (w - x)^2 / 2 on the bias of one score; a step of 0.25 from w = 1 on x = 3 gives
    w' = 1.5, and the derivative of f(w'; 7) with respect to w is (w' - 7)(1 - 0.25)."""
    bound = toys.bind("fedavg", x=[[3.0, 0.0], [7.0, 0.0]], y=[0, 0])
    received = toys.parts(torch.eye(2), torch.zeros(2, 2), [1.0, 0.0])
    working = bound.algorithm.receive(received, Parts(), Context("a", 1))

    def square(outputs: Any, targets: torch.Tensor, reference: Any) -> torch.Tensor:
        return (outputs.scores[:, 0] - outputs.features[:, 0]).square() / 2

    phase = Phase(
        name="meta", model=bound.algorithm.branch(()), trains=("head",), released=True, loss=square
    )
    f = bound.trainer.objective(phase, working)
    w = {"head": working["head"].vector.clone().requires_grad_(True)}
    (first,) = torch.autograd.grad(f(w, torch.tensor([0])), w["head"], create_graph=True)
    after = {"head": w["head"] - torch.tensor([0, 0, 0, 0, 0.25, 0.0]) * first}
    (outer,) = torch.autograd.grad(f(after, torch.tensor([1])), w["head"])
    assert float(after["head"][4].detach()) == 1.5 and float(outer[4]) == -5.5 * 0.75


def test_the_objective_holds_all_that_a_phase_adds(toys: Any) -> None:
    """Its gradient is what a step of SGD moves by, prox, mixture, reference and batch loss in."""
    bound = toys.bind("apfl", "training.lr=1", "strategy.params.alpha=0.5")
    working, trainer = start(toys, bound), bound.trainer
    anchor = {slot: f"received.{slot}" for slot in BOTH}
    moved = toys.random(bound.algorithm, BOTH, 9)
    working = working | {f"personal.{slot}": moved[slot] for slot in BOTH}

    def loss(outputs: Any, targets: torch.Tensor, reference: Any) -> torch.Tensor:
        near = (outputs.scores - reference.scores).square().sum(1)
        return bound.algorithm.task.loss(outputs, targets) + near

    phase = replace(
        bound.algorithm.phases()[0],
        loss=loss,
        batch_loss=lambda outputs, targets, reference: outputs.features.mean(),
        reference={slot: f"received.{slot}" for slot in BOTH},
    )
    batch = torch.arange(4)
    vectors = {s: working[f"personal.{s}"].vector.clone().requires_grad_(True) for s in BOTH}
    value = trainer.objective(phase, working)(vectors, batch)
    found = torch.autograd.grad(value, [vectors[s] for s in BOTH])
    after = trainer.step(phase, working, batch)
    for slot, gradient in zip(BOTH, found, strict=True):
        step = working[f"personal.{slot}"].vector - after[f"personal.{slot}"].vector
        torch.testing.assert_close(step, gradient, rtol=1e-4, atol=1e-5)
    drawn = replace(phase, prox=Prox(0.5, anchor), blend=None, loss=None, batch_loss=None)
    value = trainer.objective(drawn, working)(vectors, batch)
    found = torch.autograd.grad(value, [vectors[s] for s in BOTH])
    after = trainer.step(replace(drawn, name="drawn"), working, batch)
    for slot, gradient in zip(BOTH, found, strict=True):
        step = working[f"personal.{slot}"].vector - after[f"personal.{slot}"].vector
        torch.testing.assert_close(step, gradient, rtol=1e-4, atol=1e-5)


def test_a_gradient_leaves_nothing_out_in_silence(toys: Any) -> None:
    bound = toys.bind("ditto")
    (personal, shared), working = bound.algorithm.phases(), start(toys, bound)
    for phase, added in (
        (personal, "prox"),
        (replace(shared, reference=shared.model), "reference"),
        (replace(shared, blend=({}, 0.5)), "blend"),
        (replace(shared, batch_loss=lambda *_: torch.zeros(())), "batch_loss"),
    ):
        line = rf"a single gradient is of its loss alone, without {added}; take trainer\.objective$"
        with pytest.raises(ClientError, match=line):
            bound.trainer.gradient(phase, working, torch.arange(4))
        with pytest.raises(ClientError, match=line):
            given = replace(phase, released=True)
            bound.trainer.private_gradient(given, working, torch.arange(4))


# -- under privacy -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["step", "gradient", "objective"])
def test_what_adds_no_noise_is_refused_where_it_is_due(
    toys: Any, tmp_path: Path, what: str
) -> None:
    bound = toys.bind("ditto", "privacy.enabled=true")
    working, own = start(toys, bound), bound.trainer.examples
    bound.trainer.account = toys.quiet(
        bound.config, bound.algorithm, ClientData(own, own, own), tmp_path
    )
    personal, shared = bound.algorithm.phases()
    personal = replace(personal, prox=None)
    given = [torch.arange(4)] if what != "objective" else []
    getattr(bound.trainer, what)(personal, working, *given)  # stays on the client
    line = rf"^phase 'shared branch': trainer\.{what} adds no noise, and the phase is released; "
    with pytest.raises(ClientError, match=line):
        getattr(bound.trainer, what)(shared, working, *given)


def test_the_validation_split_is_not_for_released_phases(toys: Any, tmp_path: Path) -> None:
    bound = toys.bind("fedavg", "privacy.enabled=true")
    own, other = bound.trainer.examples, Examples(torch.ones(3, 2), torch.zeros(3).long())
    trainer = Trainer(
        bound.config,
        bound.model,
        bound.algorithm,
        own,
        server_round=1,
        client="a",
        validation=other,
        account=toys.quiet(bound.config, bound.algorithm, ClientData(own, own, own), tmp_path),
    )
    assert torch.equal(trainer.validation.x, other.x)
    assert len(bound.trainer.validation) == 0  # none was given

    def loss(outputs: Any, targets: torch.Tensor, reference: Any) -> torch.Tensor:
        return bound.algorithm.task.loss(outputs, targets) * trainer.validation.x.mean()

    (phase,) = FedAvg(bound.config, bound.model, None).phases()
    with pytest.raises(ClientError, match=r"^trainer\.validation: a released phase reads it"):
        trainer.run(replace(phase, loss=loss), start(toys, bound))
    assert torch.equal(trainer.validation.x, other.x)  # outside of it, it may be read again
