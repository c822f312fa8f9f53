"""FedRoD's two softmaxes and MAP's inheritance, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from clients.admission import check_private
from fedpers.context import Context
from fedpers.parts import Part, Parts

X = [[1.0, 0.0]] * 4
Y = [0, 0, 0, 1]
SHARES = torch.tensor([4 / 6, 2 / 6])  # (3 + 1) / (4 + 2), (1 + 1) / (4 + 2)
HEAD = ([[2.0, 0.0], [0.0, 0.0]], [0.0, 1.0])  # logits (2, 1) for every example


def trained(toys: Any, name: str, *overrides: str) -> tuple[Any, Parts]:
    bound = toys.bind(name, *overrides, x=X, y=Y)
    received = bound.algorithm.receive(toys.parts(torch.eye(2), *HEAD), Parts(), Context("a", 1))
    return bound, bound.algorithm.train(received, bound.trainer)


def bias_after(logits: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
    """A step of 0.1 on the bias: its gradient is the scale times (p - label shares)."""
    step = (logits.softmax(dim=0) - torch.tensor([3 / 4, 1 / 4])) * scale
    return torch.tensor([0.0, 1.0]) - 0.1 * step


def test_the_balanced_softmax(toys: Any) -> None:
    bound, working = trained(toys, "fedrod")
    expected = bias_after(torch.tensor([2.0, 1.0]) + SHARES.log())
    torch.testing.assert_close(bound.algorithm.upload(working)["head"]["head.bias"], expected)


def test_half_as_balanced(toys: Any) -> None:
    bound, working = trained(toys, "fedrod", "strategy.params.gamma=0.5")
    expected = bias_after(torch.tensor([2.0, 1.0]) + 0.5 * SHARES.log())
    torch.testing.assert_close(bound.algorithm.upload(working)["head"]["head.bias"], expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fedrod", ["strategy.params.softmax=restricted"]), ("map", [])],
)
def test_the_restricted_softmax(toys: Any, name: str, settings: list[str]) -> None:
    """alpha = 1/2: the scales are 1 for the frequent class, 0.5 * 0.5 + 0.5 for the other."""
    bound, working = trained(toys, name, *settings)
    scale = torch.tensor([1.0, 0.75])
    expected = bias_after(torch.tensor([2.0, 1.0]) * scale, scale)
    torch.testing.assert_close(bound.algorithm.upload(working)["head"]["head.bias"], expected)


def test_the_personal_head_lies_on_the_model_received(toys: Any) -> None:
    bound, working = trained(toys, "fedrod")
    own = working["personal.own"]["own.bias"]
    gradient = torch.tensor([2.0, 1.0]).softmax(0) - torch.tensor([3 / 4, 1 / 4])
    torch.testing.assert_close(own, -0.1 * gradient)
    probe = torch.tensor([[1.0, 0.0]])
    scores = bound.algorithm.predict("personal", working, probe, bound.trainer, "test")
    shared = bound.algorithm.predict("global", working, probe, bound.trainer, "test")
    features = working["body"]["trunk.weight"] @ probe[0]
    added = working["personal.own"]["own.weight"] @ features + own
    torch.testing.assert_close(scores[0], shared[0] + added)


def test_a_newcomer_without_examples_has_the_global_model(toys: Any) -> None:
    bound = toys.bind("fedrod", x=[], y=[])
    parts = toys.parts(torch.eye(2), *HEAD)
    working = bound.algorithm.receive(parts, Parts(), Context("a", 1))
    probe = torch.tensor([[1.0, 0.0]])
    assert bound.algorithm.predict("personal", working, probe, bound.trainer, "test").tolist() == [
        [2.0, 1.0]
    ]


def test_the_private_model_inherits(toys: Any) -> None:
    """The second of 4 expected rounds: mu = 0.9 * 2 / 4; the first takes the new model whole."""
    bound, first = trained(toys, "map", "rounds=4", "strategy.params.lam=0")
    fresh = first["fresh.head"].vector
    assert torch.equal(first["personal.head"].vector, fresh)
    kept = bound.algorithm.keep(first)
    again = bound.algorithm.receive(toys.parts(torch.eye(2), *HEAD), kept, Context("a", 2))
    second = bound.algorithm.train(again, bound.trainer)
    expected = 0.45 * fresh + 0.55 * second["fresh.head"].vector
    torch.testing.assert_close(second["personal.head"].vector, expected)
    assert float(second["personal.turns"].vector) == 2


def test_the_private_model_is_taught_by_what_it_inherited(toys: Any) -> None:
    """lam = 1: only the distance to softmax(h / 4) counts, whose gradient is p - softmax(h / 4)."""
    bound = toys.bind("map", "strategy.params.lam=1", x=X, y=Y)
    h = toys.parts(torch.eye(2), [[0.0, 0.0], [0.0, 0.0]], [math.log(16), 0.0])
    own = Parts({f"personal.{slot}": part for slot, part in h.items()})
    own = own | {"personal.turns": Part.of({"turns": torch.ones(1)})}
    parts = toys.parts(torch.eye(2), *HEAD)
    working = bound.algorithm.train(
        bound.algorithm.receive(parts, own, Context("a", 2)), bound.trainer
    )
    taught = torch.tensor([2 / 3, 1 / 3])  # softmax((ln 16, 0) / 4) = (2, 1) / 3
    expected = torch.tensor([0.0, 1.0]) - 0.1 * (torch.tensor([2.0, 1.0]).softmax(0) - taught)
    torch.testing.assert_close(working["fresh.head"]["head.bias"], expected)


@pytest.mark.parametrize("name", ["fedrod", "map"])
def test_its_private_form_passes_the_plan(toys: Any, name: str) -> None:
    check_private(name, toys.bind(name, x=X, y=Y).algorithm)
