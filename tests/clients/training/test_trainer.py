"""The training loop, against numbers by hand and loops written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.training.optimizers import decayed
from clients.training.trainer import Trainer
from fedpers.config import load_config
from fedpers.context import Context
from fedpers.errors import ClientError
from fedpers.models import Outputs
from fedpers.parts import Parts
from fedpers.phases import Phase, Prox
from fedpers.seeding import torch_generator
from fedpers.tasks import cross_entropy

PLAIN = {"body": "body", "head": "head"}
EVERYTHING = ("body", "head")


def phase(**fields: Any) -> Phase:
    base: dict[str, Any] = {"name": "p", "model": PLAIN, "trains": EVERYTHING, "released": False}
    return Phase(**{**base, **fields})


def batches_of(trainer: Trainer, name: str, size: int, epochs: int) -> list[Tensor]:
    """The batches that the trainer's documented seed gives."""
    seed, examples = trainer.config.seed, len(trainer.examples)
    generator = torch_generator(seed, "batches", trainer.server_round, trainer.client, name)
    orders = [torch.randperm(examples, generator=generator) for _ in range(epochs)]
    return [batch for order in orders for batch in torch.split(order, size)]


def logits(weights: list[Tensor], x: Tensor) -> Tensor:
    body, head, bias = weights
    return x @ body.T @ head.T + bias


def tensors(parts: Parts, prefix: str = "") -> list[Tensor]:
    head = parts[f"{prefix}head"]
    return [
        t.clone().requires_grad_(True)
        for t in (parts[f"{prefix}body"]["trunk.weight"], head["head.weight"], head["head.bias"])
    ]


def recorder(seen: list[list[int]]) -> Callable[..., Tensor]:
    """A loss that notes which rows a batch holds, where x[k] = (k, 1) and the body stays."""

    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        seen.append([int(k) for k in outputs.features[:, 0].detach().round()])
        return cross_entropy(outputs, labels, reference)

    return loss


def numbered(n: int) -> dict[str, Any]:
    return {"x": [[float(k), 1.0] for k in range(n)], "y": [k % 2 for k in range(n)]}


def test_one_step_by_hand(toys: Any) -> None:
    # x = (1, 2), y = 0, body and head the identity: logits (1, 2), p = (1 - q, q) with
    # q = 1 / (1 + 1/e) = 0.7310586. dL/dlogits = p - (1, 0) = (-q, q), so
    # dW = [[-q, -2q], [q, 2q]], db = (-q, q), and through W = I: dBody = [[-q, -2q], [q, 2q]].
    bound = toys.bind("fedavg", x=[[1.0, 2.0]], y=[0])
    working = toys.parts(torch.eye(2), torch.eye(2))
    after = bound.trainer.run(phase(), working)
    q, lr = 1 / (1 + math.exp(-1)), 0.1
    moved = torch.tensor([[1 + lr * q, 2 * lr * q], [-lr * q, 1 - 2 * lr * q]])
    torch.testing.assert_close(after["head"]["head.weight"], moved)
    torch.testing.assert_close(after["head"]["head.bias"], torch.tensor([lr * q, -lr * q]))
    torch.testing.assert_close(after["body"]["trunk.weight"], moved)
    # The loss noted is that before the step: -ln(1 - q) = 1.3132617.
    assert bound.trainer.losses == {"p": pytest.approx(-math.log(1 - q))}
    # What came in is as it was.
    assert torch.equal(working["body"]["trunk.weight"], torch.eye(2))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_loop_equals_one_written_out(toys: Any, optimizer: str) -> None:
    settings = [f"training.optimizer={optimizer}", "training.weight_decay=0.01"]
    settings += ["training.momentum=0.9"] * (optimizer == "sgd")
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(11, 2, generator=generator), torch.arange(11) % 3
    bound = toys.bind("fedavg", *settings, x=x, y=y, classes=3)
    working = toys.random(bound.algorithm, EVERYTHING, seed=1)
    after = bound.trainer.run(phase(epochs=2, batch_size=4, lr=0.2), working)

    weights = tensors(working)
    if optimizer == "sgd":
        descent: Any = torch.optim.SGD(weights, lr=0.2, momentum=0.9, weight_decay=0.01)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
        descent = kind(weights, lr=0.2, weight_decay=0.01)
    losses = []
    for batch in batches_of(bound.trainer, "p", 4, epochs=2):
        loss = F.cross_entropy(logits(weights, x[batch]), y[batch])
        losses += [float(loss.detach())] * len(batch)
        descent.zero_grad()
        loss.backward()
        descent.step()
    for mine, own in zip(tensors(after), weights, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-6)
    assert bound.trainer.losses["p"] == pytest.approx(sum(losses) / 22, rel=1e-5)


def test_a_client_without_examples_changes_nothing(toys: Any) -> None:
    bound = toys.bind("fedavg", x=[], y=[])
    working = toys.parts(torch.eye(2), [[1.0, 2.0], [3.0, 4.0]])
    assert bound.trainer.run(phase(), working) is working
    assert bound.trainer.losses == {}


def test_what_is_not_finite_is_an_error_that_names_the_phase(toys: Any) -> None:
    bound = toys.bind("fedavg", x=[[1.0, 2.0], [math.nan, 0.0]], y=[0, 1])
    working = toys.parts(torch.eye(2), torch.eye(2))
    with pytest.raises(ClientError, match=r"phase 'odd one': part 'head' is no longer finite"):
        bound.trainer.run(phase(name="odd one", trains=("head",)), working)


def test_each_epoch_takes_every_example_once_and_steps_cut_it_short(toys: Any) -> None:
    bound, seen = toys.bind("fedavg", **numbered(10)), []
    working = toys.parts(torch.eye(2), torch.zeros(2, 2))
    fields: dict[str, Any] = {"trains": ("head",), "loss": recorder(seen), "batch_size": 4}
    bound.trainer.run(phase(epochs=2, **fields), working)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    epochs = [[row for batch in seen[k : k + 3] for row in batch] for k in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    seen.clear()
    bound.trainer.run(phase(epochs=9, steps=4, **fields), working)
    assert [len(batch) for batch in seen] == [4, 4, 2, 4]


def test_batches_and_bits_depend_on_seed_round_client_and_phase_alone(toys: Any) -> None:
    def run(*overrides: str, name: str = "p", **who: Any) -> tuple[list[list[int]], Tensor]:
        seen: list[list[int]] = []
        bound = toys.bind("fedavg", *overrides, **numbered(12), **who)
        torch.rand(3)  # draws of others change nothing
        working = toys.parts(torch.eye(2), torch.zeros(2, 2))
        fields: dict[str, Any] = {"trains": ("head",), "loss": recorder(seen), "batch_size": 5}
        after = bound.trainer.run(phase(name=name, **fields), working)
        return seen, after["head"].vector

    batches, bits = run()
    again, same = run()
    assert again == batches and torch.equal(same, bits)
    for other, _ in (
        run(client="b"),
        run(server_round=2),
        run("seed=1"),
        run(name="q"),
    ):
        assert other != batches


def test_the_global_random_state_is_left_alone(toys: Any) -> None:
    bound = toys.bind("fedcp")  # whose forward pass draws noise
    broadcast = toys.random(bound.algorithm, ("body", "head", "gate"), seed=2)
    before = torch.get_rng_state()
    bound.algorithm.train(
        bound.algorithm.receive(broadcast, Parts(), Context("a", 1)), bound.trainer
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_slots_that_are_not_trained_are_frozen(toys: Any) -> None:
    # Weight decay and momentum would move a parameter whose gradient were merely zero.
    settings = ["training.weight_decay=0.5", "training.momentum=0.9"]
    bound, frozen = toys.bind("fedavg", *settings), []

    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        frozen.append([p.requires_grad for p in bound.model.trainable(EVERYTHING)])
        return cross_entropy(outputs, labels, reference)

    working = toys.parts(torch.eye(2), [[1.0, 2.0], [3.0, 4.0]])
    after = bound.trainer.run(phase(trains=("head",), loss=loss, epochs=2), working)
    assert frozen == [[False, True, True]] * 2
    assert after["body"] is working["body"]
    assert torch.equal(bound.model.read("body").vector, working["body"].vector)
    assert not torch.equal(after["head"].vector, working["head"].vector)
    # And the other way round, in the same model.
    after = bound.trainer.run(phase(trains=("body",), loss=loss), working)
    assert frozen[-1] == [True, False, False]
    assert not torch.equal(after["body"].vector, working["body"].vector)


def test_the_loss_sees_the_reference_model_on_the_same_rows(toys: Any) -> None:
    pairs: list[tuple[Tensor, Outputs]] = []

    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        assert reference is not None
        pairs.append((outputs.features.detach(), reference))
        return cross_entropy(outputs, labels, reference)

    bound = toys.bind("fedavg", **numbered(7))
    # Features of the model are x, those of the reference 3 x, its logits 3 (x0, 10 x1) + (0, 1).
    other = toys.parts([[3.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [0.0, 10.0]], [0.0, 1.0])
    working = toys.parts(torch.eye(2), torch.zeros(2, 2)) | {
        f"received.{name}": part for name, part in other.items()
    }
    reference = {"body": "received.body", "head": "received.head"}
    fields = {"trains": ("head",), "loss": loss, "reference": reference, "batch_size": 3}
    bound.trainer.run(phase(**fields), working)
    assert [len(x) for x, _ in pairs] == [3, 3, 1]
    for x, seen in pairs:
        torch.testing.assert_close(seen.features, 3 * x)
        expected = torch.stack([3 * x[:, 0], 30 * x[:, 1] + 1], dim=1)
        torch.testing.assert_close(seen.logits, expected)
        assert not seen.logits.requires_grad


def test_the_batch_loss_is_added_once_a_batch(toys: Any) -> None:
    def nothing(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        return 0 * outputs.logits.sum(dim=1)

    def total(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        return outputs.features.sum()

    bound = toys.bind("fedavg", x=[[1.0, 2.0], [3.0, 5.0]], y=[0, 1])
    working = toys.parts(torch.eye(2), torch.zeros(2, 2))
    fields: dict[str, Any] = {"trains": ("body",), "loss": nothing, "batch_loss": total}
    after = bound.trainer.run(phase(**fields), working)
    # d sum(B x) / dB has the sum of all x, (4, 7), in each row: B - 0.1 * (4, 7).
    moved = torch.tensor([[0.6, -0.7], [-0.4, 0.3]])
    torch.testing.assert_close(after["body"]["trunk.weight"], moved)


def test_the_penalty_pulls_by_mu_times_the_distance(toys: Any) -> None:
    # x = (1, 2), y = 0, head zero: p = (1/2, 1/2), dW = [[-.5, -1], [.5, 1]], db = (-.5, .5), and
    # the body gets no gradient through W = 0. Anchors: all ones for W, zero for b, 2 I for the
    # body. With lr = 0.1 and mu = 2, w - lr (grad + mu (w - anchor)):
    # W: 0 - .1 ([[-.5, -1], [.5, 1]] + 2 (0 - 1)) = [[.25, .3], [.15, .1]]; b: (.05, -.05);
    # body: I - .1 * 2 (I - 2 I) = 1.2 I.
    bound = toys.bind("fedavg", x=[[1.0, 2.0]], y=[0])
    anchors = toys.parts(2 * torch.eye(2), torch.ones(2, 2))
    working = toys.parts(torch.eye(2), torch.zeros(2, 2)) | {
        f"received.{name}": part for name, part in anchors.items()
    }
    prox = Prox(2.0, {"body": "received.body", "head": "received.head"})
    after = bound.trainer.run(phase(prox=prox), working)
    moved = torch.tensor([[0.25, 0.3], [0.15, 0.1]])
    torch.testing.assert_close(after["head"]["head.weight"], moved)
    torch.testing.assert_close(after["head"]["head.bias"], torch.tensor([0.05, -0.05]))
    torch.testing.assert_close(after["body"]["trunk.weight"], 1.2 * torch.eye(2))
    # The loss that is noted is the data's alone: ln 2.
    assert bound.trainer.losses["p"] == pytest.approx(math.log(2))


def test_the_learning_rate_may_fall_by_half_a_cosine() -> None:
    config = load_config(None, ["rounds=4", "training.lr_decay=cosine"])
    # (1 + cos(pi k / 4)) / 2 for k = 0..3.
    expected = [1.0, 0.8535534, 0.5, 0.1464466]
    assert [decayed(1.0, config, k) for k in (1, 2, 3, 4)] == pytest.approx(expected)
    assert decayed(0.3, load_config(None, ["rounds=4"]), 4) == 0.3


def test_a_phase_trains_at_its_own_decayed_rate(toys: Any) -> None:
    settings = ["rounds=4", "training.lr_decay=cosine"]
    bound = toys.bind("fedavg", *settings, x=[[1.0, 2.0]], y=[0], server_round=3)
    after = bound.trainer.run(phase(lr=1.0), toys.parts(torch.eye(2), torch.zeros(2, 2)))
    # Half of lr = 1 in round 3 of 4, times the gradient (-.5, .5) of the bias.
    torch.testing.assert_close(after["head"]["head.bias"], torch.tensor([0.25, -0.25]))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_a_blend_is_descent_on_v(toys: Any, momentum: float) -> None:
    """e = a v + (1 - a) w runs forward; only v is trained, by the chain rule."""
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(9, 2, generator=generator), torch.arange(9) % 3
    settings = [f"training.momentum={momentum}"]
    bound = toys.bind("fedavg", *settings, x=x, y=y, classes=3)
    v = toys.random(bound.algorithm, EVERYTHING, seed=1)
    w = toys.random(bound.algorithm, EVERYTHING, seed=2)
    working = v | {f"received.{name}": part for name, part in w.items()}
    share, blend = 0.3, {"body": "received.body", "head": "received.head"}
    fields: dict[str, Any] = {"epochs": 3, "batch_size": 4, "lr": 0.5}
    after = bound.trainer.run(phase(blend=(blend, share), **fields), working)

    own, frozen = tensors(v), [t.detach() for t in tensors(w)]
    descent = torch.optim.SGD(own, lr=0.5, momentum=momentum)
    for batch in batches_of(bound.trainer, "p", 4, epochs=3):
        mixed = [share * a + (1 - share) * b for a, b in zip(own, frozen, strict=True)]
        descent.zero_grad()
        F.cross_entropy(logits(mixed, x[batch]), y[batch]).backward()
        descent.step()
    for mine, expected in zip(tensors(after), own, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    assert after["received.body"] is working["received.body"]


def test_adam_moves_v_of_a_blend_by_its_rate(toys: Any) -> None:
    # Adam's first step is lr times the gradient's sign, whatever its scale.
    bound = toys.bind("fedavg", "training.optimizer=adam", x=[[1.0, 2.0]], y=[0])
    working = toys.parts(torch.eye(2), torch.zeros(2, 2))
    working = working | {f"received.{name}": part for name, part in working.items()}
    blend = ({"body": "received.body", "head": "received.head"}, 0.25)
    after = bound.trainer.run(phase(blend=blend), working)
    moved = torch.tensor([[0.1, 0.1], [-0.1, -0.1]])
    torch.testing.assert_close(after["head"]["head.weight"], moved, rtol=1e-4, atol=1e-6)


def test_a_gradient_is_that_of_the_mean_loss(toys: Any) -> None:
    bound = toys.bind("fedavg")
    working = toys.random(bound.algorithm, EVERYTHING, seed=4)
    batch = torch.tensor([0, 2, 3])
    gradient, loss = bound.trainer.gradient(phase(), working, batch)
    weights = tensors(working)
    x, y = bound.trainer.examples.x[batch], bound.trainer.examples.y[batch]
    expected = F.cross_entropy(logits(weights, x), y)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()))
    body, head, bias = (t.grad for t in weights)
    torch.testing.assert_close(gradient["body"]["trunk.weight"], body)
    torch.testing.assert_close(gradient["head"]["head.weight"], head)
    torch.testing.assert_close(gradient["head"]["head.bias"], bias)
    # Asked again it does not add up; a slot that is not trained has none.
    again, _ = bound.trainer.gradient(phase(trains=("head",)), working, batch)
    assert list(again) == ["head"]
    assert torch.equal(again["head"].vector, gradient["head"].vector)


@pytest.mark.parametrize("n", [0, 3, 1025])
def test_outputs_of_any_number_of_examples(toys: Any, n: int) -> None:
    bound = toys.bind("fedavg")
    working = toys.random(bound.algorithm, EVERYTHING, seed=5)
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    outputs = bound.trainer.outputs(PLAIN, working, x)
    assert outputs.features.shape == (n, 2) and outputs.logits.shape == (n, 2)
    torch.testing.assert_close(outputs.logits, logits(tensors(working), x).detach())
    assert not outputs.logits.requires_grad
