"""FedCP on the client: two heads, the gate between them, and the alignment."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.methods.fedcp import mmd
from fedpers.context import Context
from fedpers.parts import Part, Parts

ALL = ("body", "head", "gate")


def even(part: Part) -> Part:
    """A gate that gives each head half: its layer norm scales every score to zero."""
    return part.like(torch.zeros_like(part.vector))


def test_equal_heads_and_an_even_gate_give_the_global_logits_exactly(toys: Any) -> None:
    bound = toys.bind("fedcp")
    broadcast = toys.random(bound.algorithm, ALL, seed=1)
    head = broadcast["head"]
    rows = head.like(head.vector * torch.tensor([1.0, 1, 1, 1, 0, 0]))  # no bias, so no rounding
    broadcast = broadcast | {"head": rows, "gate": even(broadcast["gate"])}
    working = bound.algorithm.receive(broadcast, Parts(), Context("a", 1))
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    personal = bound.algorithm.predict("personal", working, x, bound.trainer, "test")
    features = x @ broadcast["body"]["trunk.weight"].T
    # W (z / 2) + W (z / 2): halving is exact.
    assert torch.equal(personal, features @ rows["head.weight"].T)
    # With a bias, and whatever a gate gives each head (r + s = 1): equal but for rounding.
    for seed in (2, 3):
        broadcast = toys.random(bound.algorithm, ALL, seed=seed)
        working = bound.algorithm.receive(broadcast, Parts(), Context("a", 1))
        body, head = broadcast["body"]["trunk.weight"], broadcast["head"]
        expected = x @ body.T @ head["head.weight"].T + head["head.bias"]
        for mode in ("personal", "global"):
            logits = bound.algorithm.predict(mode, working, x, bound.trainer, "test")
            torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_each_head_sees_its_share_of_the_features(toys: Any) -> None:
    # z = x = (2, 4), an even gate: both heads see (1, 2). Personal W_i = I: (1, 2); global
    # W_g swaps: (2, 1); the personal bias (.5, -.5) counts once: (3.5, 2.5).
    bound = toys.bind("fedcp")
    broadcast = toys.parts(torch.eye(2), [[0.0, 1.0], [1.0, 0.0]], [9.0, 9.0])
    broadcast = broadcast | {"gate": even(bound.algorithm.initial["gate"])}
    kept = Parts({"personal.head": toys.head(torch.eye(2), [0.5, -0.5])})
    working = bound.algorithm.receive(broadcast, kept, Context("a", 1))
    x = torch.tensor([[2.0, 4.0]])
    personal = bound.algorithm.predict("personal", working, x, bound.trainer, "test")
    torch.testing.assert_close(personal, torch.tensor([[3.5, 2.5]]))
    # Global: W_g z + b_g, with nothing of the client in it.
    logits = bound.algorithm.predict("global", working, x, bound.trainer, "test")
    torch.testing.assert_close(logits, torch.tensor([[13.0, 11.0]]))


def test_the_gate_is_asked_about_the_features_along_the_client_vector(toys: Any) -> None:
    # Rows (3, 0) and (0, 4) of the personal head add up to (3, 4), of length 5: (.6, .8).
    bound = toys.bind("fedcp")
    broadcast = toys.random(bound.algorithm, ALL, seed=4)
    kept = Parts({"personal.head": toys.head([[3.0, 0.0], [0.0, 4.0]])})
    working = bound.algorithm.receive(broadcast, kept, Context("a", 1))
    frozen = working["frozen"]
    torch.testing.assert_close(frozen["frozen.vector"], torch.tensor([0.6, 0.8]))
    assert torch.equal(frozen["frozen.weight"], broadcast["head"]["head.weight"])
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    logits = bound.algorithm.predict("personal", working, x, bound.trainer, "test")
    z = x @ broadcast["body"]["trunk.weight"].T
    r, s = bound.model.get_submodule("gate")(z * torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(r + s, torch.ones(2, 2))
    own, received = kept["personal.head"]["head.weight"], broadcast["head"]["head.weight"]
    torch.testing.assert_close(logits, (r * z) @ own.T + (s * z) @ received.T)
    # A head of zeros has no direction.
    flat = bound.algorithm.receive(
        broadcast, Parts({"personal.head": toys.head(torch.zeros(2, 2))}), Context("a", 1)
    )
    assert flat["frozen"]["frozen.vector"].tolist() == [0.0, 0.0]


def test_noise_is_for_training_only(toys: Any) -> None:
    bound = toys.bind("fedcp")
    broadcast = toys.random(bound.algorithm, ALL, seed=5)
    own = toys.random(bound.algorithm, ["head"], seed=6)["head"]
    working = bound.algorithm.receive(broadcast, Parts({"personal.head": own}), Context("a", 1))
    x = torch.randn(5, 2)
    first = bound.algorithm.predict("personal", working, x, bound.trainer, "test")
    assert torch.equal(
        bound.algorithm.predict("personal", working, x, bound.trainer, "test"), first
    )
    with torch.no_grad():
        noisy = [bound.algorithm.forward(bound.model, x, training=True).logits for _ in range(2)]
        assert not torch.equal(noisy[0], noisy[1])
        assert torch.equal(bound.algorithm.forward(bound.model, x).logits, first)


def test_the_uploaded_head_is_the_mean_of_own_and_received(toys: Any) -> None:
    bound = toys.bind("fedcp")
    broadcast = toys.parts(torch.eye(2), [[1.0, 2.0], [3.0, 4.0]], [1.0, 0.0])
    broadcast = broadcast | {"gate": bound.algorithm.initial["gate"]}
    kept = Parts({"personal.head": toys.head([[3.0, 0.0], [-3.0, 0.0]], [0.0, 4.0])})
    upload = bound.algorithm.upload(bound.algorithm.receive(broadcast, kept, Context("a", 1)))
    assert list(upload) == ["body", "head", "gate"]
    assert upload["head"]["head.weight"].tolist() == [[2.0, 1.0], [0.0, 2.0]]
    assert upload["head"]["head.bias"].tolist() == [0.5, 2.0]


def test_training_moves_body_gate_and_own_head_but_nothing_frozen(toys: Any) -> None:
    bound = toys.bind("fedcp")
    broadcast = toys.random(bound.algorithm, ALL, seed=7)
    # Between equal heads the gate would have no gradient.
    kept = Parts({"personal.head": toys.random(bound.algorithm, ["head"], seed=8)["head"]})
    before = bound.algorithm.receive(broadcast, kept, Context("a", 1))
    after = bound.algorithm.train(before, bound.trainer)
    moved = {name for name in after if not torch.equal(after[name].vector, before[name].vector)}
    assert moved == {"body", "gate", "personal.head"}
    assert set(bound.algorithm.keep(after)) == {"personal.head"}
    # The noise is seeded: once more gives the same bits, another client other ones.
    again = bound.algorithm.train(before, bound.trainer)
    assert torch.equal(again["gate"].vector, after["gate"].vector)
    other = toys.bind("fedcp", client="b")
    elsewhere = other.algorithm.train(
        other.algorithm.receive(broadcast, kept, Context("a", 1)), other.trainer
    )
    assert not torch.equal(elsewhere["gate"].vector, after["gate"].vector)


def test_the_alignment_holds_features_where_the_received_body_had_them(toys: Any) -> None:
    def drift(lam: str) -> float:
        settings = ["training.epochs=100", "training.lr=0.02"]
        bound = toys.bind("fedcp", f"strategy.params.lam={lam}", *settings)
        broadcast = toys.random(bound.algorithm, ALL, seed=8)
        working = bound.algorithm.receive(broadcast, Parts(), Context("a", 1))
        trained = bound.algorithm.train(working, bound.trainer)
        x = bound.trainer.examples.x
        before = x @ broadcast["body"]["trunk.weight"].T
        return float(mmd(x @ trained["body"]["trunk.weight"].T, before))

    assert toys.bind("fedcp", "strategy.params.lam=0").algorithm.phases()[0].batch_loss is None
    assert drift("5") < 0.2 * drift("0")


def test_a_bottleneck_makes_the_gate_smaller(toys: Any) -> None:
    # Published, d = 2: Linear(2, 4) 12, LayerNorm(4) 8. Width 1: Linear(2, 1) 3, LayerNorm(1) 2,
    # Linear(1, 4) 8.
    sizes = {
        width: toys.bind("fedcp", f"strategy.params.gate_width={width}").algorithm.initial["gate"]
        for width in ("null", "1")
    }
    assert {width: part.layout.size for width, part in sizes.items()} == {"null": 20, "1": 13}


def test_mmd_of_two_tiny_sets() -> None:
    # X = {0, 1}, Y = {0, 2}, with k(d2) = exp(-d2 / 2q). Sums over the four pairs:
    # XX: 2 + 2 k(1); YY: 2 + 2 k(4); XY: d2 = 0, 4, 1, 1, so 1 + k(4) + 2 k(1).
    # (XX + YY - 2 XY) / 4 = (2 - 2 k(1)) / 4 = (1 - k(1)) / 2, for each q in 10, 15, 20, 50.
    expected = sum((1 - math.exp(-1 / (2 * q))) / 2 for q in (10, 15, 20, 50))
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    assert float(mmd(x, y)) == pytest.approx(expected, rel=1e-5)
    assert float(mmd(y, x)) == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 5), st.integers(1, 4), st.floats(0, 100), st.integers(0, 99))
def test_mmd_is_zero_between_a_set_and_itself_and_its_gradient_is_finite(
    n: int, d: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = scale * torch.randn(n, d, generator=generator)
    x = y.clone().requires_grad_(True)
    distance = mmd(x, y)
    distance.backward()  # type: ignore[no-untyped-call]
    assert float(distance.detach()) == pytest.approx(0, abs=1e-4)
    assert x.grad is not None and bool(x.grad.isfinite().all())
    assert float(x.grad.abs().max()) < 1e-2 * max(scale, 1)
    apart = mmd(y, torch.randn(n, d, generator=generator))
    assert float(apart) > -1e-4
