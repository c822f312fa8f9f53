"""IFCA's choice, by hand."""

from __future__ import annotations

from typing import Any

import torch

from clients.admission import check_private
from fedpers.context import Context
from fedpers.parts import Parts

X = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
Y = [0, 0, 1]


def received(toys: Any, *biases: list[float]) -> Parts:
    models = [toys.parts(torch.eye(2), torch.zeros(2, 2), bias) for bias in biases]
    return Parts({f"{s}@{k}": part for k, m in enumerate(models) for s, part in m.items()})


def test_the_model_of_least_loss_is_trained_and_sent(toys: Any) -> None:
    """Two of three examples are of class 0, which the second model favours."""
    bound = toys.bind("ifca", "strategy.params.models=2", x=X, y=Y)
    parts = received(toys, [0.0, 1.0], [1.0, 0.0])
    working = bound.algorithm.receive(parts, Parts(), Context("a", 1))
    trained = bound.algorithm.train(working, bound.trainer)
    assert list(bound.algorithm.upload(trained)) == ["body@1", "head@1"]
    p = torch.tensor([1.0, 0.0]).softmax(0)
    bias = torch.tensor([1.0, 0.0]) - 0.1 * (p - torch.tensor([2 / 3, 1 / 3]))
    torch.testing.assert_close(bound.algorithm.upload(trained)["head@1"]["head.bias"], bias)


def test_an_example_can_sway_the_choice_by_its_bound_only(toys: Any) -> None:
    """Its losses are 0 and 50: clipped to 1 they cannot outweigh two others."""
    x, y = [[1.0, 0.0], [1.0, 0.0], [50.0, 0.0]], [0, 0, 1]
    one = toys.parts(torch.eye(2), [[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0])
    two = toys.parts(torch.eye(2), [[0.0, 0.0], [1.0, 0.0]], [0.0, 1.0])
    parts = Parts(
        {f"{slot}@{k}": part for k, m in enumerate((one, two)) for slot, part in m.items()}
    )
    chosen = []
    for bound in ("strategy.params.loss_bound=100", "strategy.params.loss_bound=1"):
        made = toys.bind("ifca", "strategy.params.models=2", bound, x=x, y=y)
        working = made.algorithm.receive(parts, Parts(), Context("a", 1))
        made.algorithm.prepare(working, made.trainer)
        chosen.append(int(made.algorithm.prepare(working, made.trainer)["chosen"].vector))
    sums = made.algorithm.losses(working, made.trainer).sum(0)
    assert chosen == [int(sums.argmin()), 0]


def test_without_examples_the_first_predicts(toys: Any) -> None:
    bound = toys.bind("ifca", "strategy.params.models=2", x=[], y=[])
    parts = received(toys, [0.0, 1.0], [1.0, 0.0])
    working = bound.algorithm.receive(parts, Parts(), Context("a", 1))
    tuned = bound.algorithm.tune(working, bound.trainer)
    probe = torch.tensor([[0.0, 0.0]])
    assert bound.algorithm.predict("personal", tuned, probe, bound.trainer, "test").tolist() == [
        [0.0, 1.0]
    ]


def test_its_private_form_passes_the_plan(toys: Any) -> None:
    check_private("ifca", toys.bind("ifca", x=X, y=Y).algorithm)
