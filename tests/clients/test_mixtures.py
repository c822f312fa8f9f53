"""APFL, FedALA and FedDPA: models mixed of a personal and a received one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.training.trainer import Trainer
from fedpers.context import Context
from fedpers.data import Examples
from fedpers.parts import Part, Parts

BOTH = ("body", "head")
ONE = {"x": [[1.0, 2.0]], "y": [0]}
# Heads that are 0 but for W[0, 0] = 1: logits of x = (1, 2) are (1, 0).
UNIT, ZERO = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]


def personal(parts: Parts, **more: Part) -> Parts:
    return Parts({f"personal.{slot}": part for slot, part in {**parts, **more}.items()})


def scalar(value: float) -> Part:
    return Part.of({"alpha": torch.tensor(value)})


def logits_of(parts: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ parts["body"].T @ parts["weight"].T + parts["bias"]


def pieces(parts: Parts, prefix: str = "") -> dict[str, Tensor]:
    body, head = parts[f"{prefix}body"], parts[f"{prefix}head"]
    return {"body": body["trunk.weight"], "weight": head["head.weight"], "bias": head["head.bias"]}


# -- APFL ----------------------------------------------------------------------------------------


def test_apfls_mixture_predicts(toys: Any) -> None:
    bound = toys.bind("apfl")
    received = toys.parts(torch.eye(2), ZERO, [0.0, 4.0])
    own = toys.parts(3 * torch.eye(2), [[4.0, 0.0], [0.0, 0.0]])
    working = bound.algorithm.receive(received, personal(own, alpha=scalar(0.25)), Context("a", 1))
    # Body .25 * 3 + .75 = 1.5, W[0, 0] = .25 * 4 = 1, b = .75 * (0, 4): (1.5, 0) + (0, 3).
    logits = bound.algorithm.predict(
        "personal", working, torch.tensor([[1.0, 2.0]]), bound.trainer, "test"
    )
    torch.testing.assert_close(logits, torch.tensor([[1.5, 3.0]]))
    logits = bound.algorithm.predict(
        "global", working, torch.tensor([[1.0, 2.0]]), bound.trainer, "test"
    )
    torch.testing.assert_close(logits, torch.tensor([[0.0, 4.0]]))


def test_apfls_alpha_goes_down_the_slope(toys: Any) -> None:
    # v - w is UNIT. At alpha = 1/2 the mixture's logits are (1/2, 0), p0 = 1 / (1 + e^-.5), and
    # d loss / d W[0, 0] = (p0 - 1) * x0 = -.3775407. alpha = .5 - lr * (-.3775407), lr = .1.
    bound = toys.bind("apfl", **ONE)
    received, own = toys.parts(torch.eye(2), ZERO), toys.parts(torch.eye(2), UNIT)
    working = bound.algorithm.receive(received, personal(own), Context("a", 1))
    after = bound.algorithm.train(working, bound.trainer)
    slope = 1 / (1 + math.exp(-0.5)) - 1
    assert slope == pytest.approx(-0.3775407)
    assert float(after["personal.alpha"].vector) == pytest.approx(0.5 - 0.1 * slope, rel=1e-6)
    assert set(bound.algorithm.keep(after)) == {
        "personal.body",
        "personal.head",
        "personal.alpha",
    }
    # It goes on from there, at a rate of its own if it has one, within [0.01, 1].
    for rate, start, end in (("2", 0.5, 1.0), ("2", 0.3, 0.3 + 2 * (1 - 1 / (1 + math.exp(-0.3))))):
        faster = toys.bind("apfl", f"strategy.params.alpha_lr={rate}", **ONE)
        working = faster.algorithm.receive(
            received, personal(own, alpha=scalar(start)), Context("a", 1)
        )
        after = faster.algorithm.train(working, faster.trainer)
        assert float(after["personal.alpha"].vector) == pytest.approx(min(end, 1.0))
    wrong = toys.bind("apfl", "strategy.params.alpha_lr=9", x=[[1.0, 2.0]], y=[1])
    after = wrong.algorithm.train(
        wrong.algorithm.receive(received, personal(own), Context("a", 1)), wrong.trainer
    )
    assert float(after["personal.alpha"].vector) == pytest.approx(0.01)


def test_apfls_alpha_may_be_fixed_and_has_no_slope_where_v_is_w(toys: Any) -> None:
    received, own = toys.parts(torch.eye(2), ZERO), toys.parts(torch.eye(2), UNIT)
    fixed = toys.bind("apfl", "strategy.params.adaptive=false", "strategy.params.alpha=0.7")
    after = fixed.algorithm.train(
        fixed.algorithm.receive(received, personal(own), Context("a", 1)), fixed.trainer
    )
    assert float(after["personal.alpha"].vector) == pytest.approx(0.7)
    first = toys.bind("apfl")
    after = first.algorithm.train(
        first.algorithm.receive(received, Parts(), Context("a", 1)), first.trainer
    )
    assert float(after["personal.alpha"].vector) == 0.5


def test_apfl_trains_v_within_the_mixture_at_the_new_alpha(toys: Any) -> None:
    bound = toys.bind("apfl", "training.epochs=4", "training.lr=0.3")
    received = toys.random(bound.algorithm, BOTH, seed=1)
    own = toys.random(bound.algorithm, BOTH, seed=2)
    working = bound.algorithm.receive(received, personal(own, alpha=scalar(0.6)), Context("a", 1))
    after = bound.algorithm.train(working, bound.trainer)
    alpha = float(after["personal.alpha"].vector)
    assert abs(alpha - 0.6) > 0.01
    v = {name: t.clone().requires_grad_(True) for name, t in pieces(own).items()}
    w, x, y = pieces(received), bound.trainer.examples.x, bound.trainer.examples.y
    for _ in range(4):
        mixed = {name: alpha * v[name] + (1 - alpha) * w[name] for name in v}
        loss = F.cross_entropy(logits_of(mixed, x), y)
        for tensor, gradient in zip(
            v.values(), torch.autograd.grad(loss, list(v.values())), strict=True
        ):
            tensor.data -= 0.3 * gradient
    for name, tensor in pieces(after, "personal.").items():
        torch.testing.assert_close(tensor, v[name].detach(), rtol=1e-4, atol=1e-5)


# -- FedALA --------------------------------------------------------------------------------------


def test_fedala_mixes_element_by_element_and_overwrites_what_is_below(toys: Any) -> None:
    bound = toys.bind("fedala")
    received = toys.parts(2 * torch.eye(2), [[2.0, 2.0], [2.0, 2.0]], [1.0, 0.0])
    own = toys.parts(5 * torch.eye(2), [[0.0, 0.0], [4.0, 4.0]])
    weights = toys.head([[0.25, 1.0], [0.5, 0.0]], [0.5, 1.0])
    kept = personal(own) | {"personal.weights.head": weights}
    working = bound.algorithm.receive(received, kept, Context("a", 1))
    # old + (new - old) W: 0 + 2 * .25, 0 + 2 * 1, 4 - 2 * .5, 4 - 0; bias 0 + 1 * .5, 0.
    assert working["mixed.head"]["head.weight"].tolist() == [[0.5, 2.0], [3.0, 4.0]]
    assert working["mixed.head"]["head.bias"].tolist() == [0.5, 0.0]
    assert working["mixed.body"] is received["body"]
    # Weights start at 1: the global model.
    first = bound.algorithm.receive(received, personal(own), Context("a", 1))
    assert torch.equal(first["mixed.head"].vector, received["head"].vector)
    # layers=all mixes the body, too.
    everything = toys.bind("fedala", "strategy.params.layers=all")
    ones = toys.body(torch.full((2, 2), 0.5))
    kept = kept | {"personal.weights.body": ones}
    working = everything.algorithm.receive(received, kept, Context("a", 1))
    assert working["mixed.body"]["trunk.weight"].tolist() == [[3.5, 0.0], [0.0, 3.5]]


@pytest.mark.parametrize(("label", "expected"), [(1, 0.2689414), (0, 1.0)])
def test_fedalas_weight_step_by_hand(toys: Any, label: int, expected: float) -> None:
    # W = 1, so the mixture is the received head, UNIT, with logits (1, 0) and p0 = .7310586.
    # The gap UNIT - 0 leaves W[0, 0] alone to move. For label 1: d loss / d head[0, 0] = p0 * x0,
    # W = 1 - eta * .7310586 * 1 = .2689414. For label 0: (p0 - 1) x0 < 0, clipped to 1.
    params = ["strategy.params.sample=1", "strategy.params.first_epochs=1"]
    bound = toys.bind("fedala", *params, x=[[1.0, 2.0]], y=[label])
    received, own = toys.parts(torch.eye(2), UNIT), toys.parts(torch.eye(2), ZERO)
    working = bound.algorithm.receive(received, personal(own), Context("a", 1))
    learned = bound.algorithm.learn_weights(working, bound.trainer)
    weights = learned["personal.weights.head"]["head.weight"]
    torch.testing.assert_close(weights, torch.tensor([[expected, 1.0], [1.0, 1.0]]))
    mixed = learned["mixed.head"]["head.weight"]
    torch.testing.assert_close(mixed, torch.tensor([[expected, 0.0], [0.0, 0.0]]))
    # A prediction is made under the weights learned for what was received.
    tuned = bound.algorithm.tune(working, bound.trainer)
    logits = bound.algorithm.predict(
        "personal", tuned, torch.tensor([[1.0, 2.0]]), bound.trainer, "test"
    )
    torch.testing.assert_close(logits, torch.tensor([[expected, 0.0]]))
    # Never below 0 either.
    greedy = toys.bind("fedala", *params, "strategy.params.eta=5", x=[[1.0, 2.0]], y=[1])
    learned = greedy.algorithm.learn_weights(working, greedy.trainer)
    assert float(learned["personal.weights.head"]["head.weight"][0, 0]) == 0.0


def test_fedala_trains_all_of_it_from_the_mixture(toys: Any) -> None:
    params = ["strategy.params.sample=1", "strategy.params.first_epochs=1"]
    bound = toys.bind("fedala", *params, "training.lr=0.5", x=[[1.0, 2.0]], y=[1])
    received, own = toys.parts(torch.eye(2), UNIT), toys.parts(torch.eye(2), ZERO)
    after = bound.algorithm.train(
        bound.algorithm.receive(received, personal(own), Context("a", 1)), bound.trainer
    )
    start = {"body": torch.eye(2), "weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    start["weight"][0, 0] = 0.2689414
    leaves = {name: t.requires_grad_(True) for name, t in start.items()}
    loss = F.cross_entropy(logits_of(leaves, torch.tensor([[1.0, 2.0]])), torch.tensor([1]))
    loss.backward()
    for name, tensor in pieces(after).items():
        torch.testing.assert_close(tensor, (leaves[name] - 0.5 * leaves[name].grad).detach())
    # What was trained is sent, and is the client's own next time, with its weights.
    for slot in BOTH:
        assert after[f"personal.{slot}"] is after[slot]
    assert set(bound.algorithm.keep(after)) == {
        *("personal.body", "personal.head", "personal.weights.head"),
    }


class Counting(Trainer):
    """Counts the examples of each gradient that is asked for."""

    sizes: list[int]

    def gradient(
        self, phase: Any, working: Parts, batch: Tensor, *, trains: bool = True
    ) -> tuple[Parts, float]:
        self.sizes.append(len(batch))
        return super().gradient(phase, working, batch, trains=trains)


@pytest.mark.parametrize(
    ("tolerance", "weights", "expected"),
    [
        ("1e-9", None, [4, 4] * 10),  # never settles: first_epochs
        ("1e9", None, [4, 4] * 6),  # settles as soon as there are more than ten losses
        ("1e-9", 0.5, [4, 4]),  # not the first time: one epoch
    ],
)
def test_how_long_fedala_learns_its_weights(
    toys: Any, tolerance: str, weights: float | None, expected: list[int]
) -> None:
    params = ["strategy.params.sample=0.8", f"strategy.params.tolerance={tolerance}"]
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    bound = toys.bind("fedala", *params, "training.batch_size=4")
    trainer = Counting(
        bound.config,
        bound.model,
        bound.algorithm,
        Examples(x, torch.arange(10) % 2),
        server_round=1,
        client="a",
    )
    trainer.sizes = []
    received, own = (toys.random(bound.algorithm, BOTH, seed=seed) for seed in (1, 2))
    kept = personal(own)
    if weights is not None:
        half = own["head"].like(torch.full_like(own["head"].vector, weights))
        kept = kept | {"personal.weights.head": half}
    bound.algorithm.learn_weights(bound.algorithm.receive(received, kept, Context("a", 1)), trainer)
    assert trainer.sizes == expected  # 80 % of ten examples, in batches of four


def test_fedala_has_nothing_to_learn_in_the_first_round(toys: Any) -> None:
    bound = toys.bind("fedala")
    working = bound.algorithm.receive(
        toys.random(bound.algorithm, BOTH, seed=1), Parts(), Context("a", 1)
    )
    assert bound.algorithm.learn_weights(working, bound.trainer) is working


# -- FedDPA --------------------------------------------------------------------------------------


def test_feddpas_instance_weights_by_hand(toys: Any) -> None:
    # Local examples a = (1, 0), b = (0, 1), c = (.6, .8), features are x: cosines ab 0, ac .6,
    # bc .8. Each against the others: a .3, b .4, c .7; mean .4666667, spread (population)
    # sqrt((.1666667^2 + .0666667^2 + .2333333^2) / 3) = .1699673.
    # (1, 1): cosines .7071068, .7071068, .9899495, mean .8013877; z = (.8013877 - .4666667) /
    # .1699673 = 1.969325: above typical, so the share, 1/2. (-1, -1): mean -.8013877, so
    # z = -7.460577, sigmoid(z + 2) / sigmoid(2) / 2 = .0024061. (1, -1): (.7071068 - .7071068 -
    # .1414214) / 3 = -.0471405, z = -3.022976: .2644669 / .8807971 / 2 = .1501293.
    x = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    bound = toys.bind("feddpa", x=x, y=[0, 1, 1])
    working = bound.algorithm.receive(toys.parts(torch.eye(2), UNIT), Parts(), Context("a", 1))
    working = bound.algorithm.recall(working, bound.trainer)
    probe = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    weights = bound.algorithm.instance_weights(working, probe, bound.trainer)
    expected = torch.tensor([0.5, 0.0024061, 0.1501293])
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)


def test_feddpa_trusts_the_local_adapter_where_the_data_are_local(toys: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.tensor([3.0, 1.0]) + 0.5 * torch.randn(200, 2, generator=generator)
    bound = toys.bind("feddpa", x=x[:100], y=torch.zeros(100))
    working = bound.algorithm.receive(toys.parts(torch.eye(2), UNIT), Parts(), Context("a", 1))
    working = bound.algorithm.recall(working, bound.trainer)
    inside = bound.algorithm.instance_weights(working, x[100:], bound.trainer)
    outside = bound.algorithm.instance_weights(working, x[100:].flip(1), bound.trainer)
    assert float(inside.mean()) > 0.4 > 0.05 > float(outside.max())
    # It is under the local adapter that instances are compared.
    turned = personal(toys.parts([[0.0, 1.0], [0.0, 0.0]], UNIT))
    flat = bound.algorithm.receive(toys.parts(torch.eye(2), UNIT), turned, Context("a", 1))
    flat = bound.algorithm.recall(flat, bound.trainer)
    weights = bound.algorithm.instance_weights(flat, x[100:].abs().flip(1), bound.trainer)
    assert bool((weights > 0.4).all())
    # Identical local examples have no spread; that divides nothing by zero.
    same = toys.bind("feddpa", x=[[1.0, 0.0]] * 3, y=[0, 0, 1])
    working = same.algorithm.recall(working, same.trainer)
    weights = same.algorithm.instance_weights(working, x[:5], same.trainer)
    assert bool(weights.isfinite().all())


def test_feddpa_predicts_each_instance_under_its_own_mixture(toys: Any) -> None:
    x = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    bound = toys.bind("feddpa", x=x, y=[0, 1, 1])
    received = toys.random(bound.algorithm, BOTH, seed=1)
    own = toys.random(bound.algorithm, BOTH, seed=2)
    bare = bound.algorithm.receive(received, personal(own), Context("a", 1))
    working = bound.algorithm.recall(bare, bound.trainer)
    probe = torch.randn(20, 2, generator=torch.Generator().manual_seed(3))
    weights = bound.algorithm.instance_weights(working, probe, bound.trainer)
    levels = (10 * weights).round() / 10
    assert len(levels.unique()) > 2
    logits = bound.algorithm.predict("personal", working, probe, bound.trainer, "test")
    local, shared = pieces(own), pieces(received)
    for k, share in enumerate(levels.tolist()):
        mixed = {n: share * local[n] + (1 - share) * shared[n] for n in local}
        torch.testing.assert_close(logits[k], logits_of(mixed, probe[k : k + 1])[0])
    plain = bound.algorithm.predict("global", working, probe, bound.trainer, "test")
    torch.testing.assert_close(plain, logits_of(shared, probe))
    # With a single local example there is nothing to compare with: the global model.
    single = toys.bind("feddpa", **ONE)
    assert single.algorithm.recall(bare, single.trainer) is bare
    logits = single.algorithm.predict("personal", bare, probe, single.trainer, "test")
    torch.testing.assert_close(logits, logits_of(shared, probe))


def test_feddpa_trains_the_local_adapter_within_the_received_mixture(toys: Any) -> None:
    bound = toys.bind("feddpa", "strategy.params.share=0.4", "training.lr=0.2")
    received = toys.random(bound.algorithm, BOTH, seed=1)
    own = toys.random(bound.algorithm, BOTH, seed=2)
    after = bound.algorithm.train(
        bound.algorithm.receive(received, personal(own), Context("a", 1)), bound.trainer
    )
    local = {name: t.clone().requires_grad_(True) for name, t in pieces(own).items()}
    shared, examples = pieces(received), bound.trainer.examples
    mixed = {name: 0.4 * local[name] + 0.6 * shared[name] for name in local}
    F.cross_entropy(logits_of(mixed, examples.x), examples.y).backward()
    for name, tensor in pieces(after, "personal.").items():
        expected = (local[name] - 0.2 * local[name].grad).detach()
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
