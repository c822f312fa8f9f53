"""The intercept baseline, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clients.admission import check_private
from clients.node.host import ClientHost
from fedpers.config import Config
from fedpers.context import Context
from fedpers.parts import Part, Parts

X = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
Y = [0, 0, 0, 1]
HEAD = ([[math.log(3), 0.0], [0.0, 0.0]], [0.0, math.log(9)])


def test_a_round_by_hand(toys: Any) -> None:
    """Logits (ln 3, ln 9) for every example: probabilities 1/4 and 3/4; labels 3/4 and 1/4."""
    bound = toys.bind("intercept", "training.lr=2", x=X, y=Y)
    algorithm, trainer = bound.algorithm, bound.trainer
    broadcast = toys.parts(torch.eye(2), *HEAD)
    working = algorithm.train(algorithm.receive(broadcast, Parts(), Context("a", 1)), trainer)
    # The mean gradient for b is (1/4 - 3/4, 3/4 - 1/4); one step of 2 from zero.
    own = algorithm.keep(working)
    assert list(own) == ["personal.intercept"]
    torch.testing.assert_close(own["personal.intercept"].vector, torch.tensor([1.0, -1.0]))
    # The shared model is trained without b: its bias makes the same step from ln 9.
    bias = algorithm.upload(working)["head"]["head.bias"]
    torch.testing.assert_close(bias, torch.tensor([1.0, math.log(9) - 1.0]))

    # The next round goes on from b = (1, -1), beside what is received then.
    again = algorithm.train(algorithm.receive(broadcast, own, Context("a", 1)), trainer)
    odds = math.exp(math.log(3) + 1 - math.log(9) + 1)
    step = 2 * (3 / 4 - odds / (1 + odds))
    expected = torch.tensor([1 + step, -1 - step])
    torch.testing.assert_close(again["personal.intercept"].vector, expected)


def test_predictions_by_hand(toys: Any) -> None:
    algorithm, trainer, *_ = toys.bind("intercept", x=X, y=Y)
    own = Parts({"personal.intercept": Part.of({"intercept.bias": torch.tensor([0.5, -2.0])})})
    working = algorithm.receive(
        toys.parts(torch.eye(2), [[1.0, 0.0], [0.0, 1.0]]), own, Context("a", 1)
    )
    probe = torch.tensor([[3.0, 4.0]])
    assert algorithm.predict("global", working, probe, trainer, "test").tolist() == [[3.0, 4.0]]
    assert algorithm.predict("personal", working, probe, trainer, "test").tolist() == [[3.5, 2.0]]


def test_nothing_of_the_intercepts_leaves(toys: Any) -> None:
    """Under noise the shared branch is what it is without any intercept: the plan accepts it."""
    algorithm, trainer, *_ = toys.bind("intercept", x=X, y=Y)
    check_private("intercept", algorithm)
    broadcast = toys.parts(torch.eye(2), *HEAD)
    uploads = []
    for values in ([0.0, 0.0], [5.0, -7.0]):
        own = Parts({"personal.intercept": Part.of({"intercept.bias": torch.tensor(values)})})
        working = algorithm.train(algorithm.receive(broadcast, own, Context("a", 1)), trainer)
        uploads.append(algorithm.upload(working))
    assert list(uploads[0]) == ["body", "head"]
    for slot in uploads[0]:
        assert torch.equal(uploads[0][slot].vector, uploads[1][slot].vector)


def test_own_epochs_and_rate(toys: Any) -> None:
    bound = toys.bind(
        "intercept",
        *("strategy.params.intercept_epochs=3", "strategy.params.intercept_lr=0.5"),
        x=X,
        y=Y,
    )
    working = bound.algorithm.receive(toys.parts(torch.eye(2), *HEAD), Parts(), Context("a", 1))
    b = torch.zeros(2)
    for _ in range(3):
        shares = torch.softmax(torch.tensor([math.log(3), math.log(9)]) + b, dim=0)
        b = b - 0.5 * (shares - torch.tensor([3 / 4, 1 / 4]))
    trained = bound.algorithm.train(working, bound.trainer)["personal.intercept"].vector
    torch.testing.assert_close(trained, b)


def test_it_trains_under_privacy(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("intercept", "privacy.enabled=true", "privacy.delta=0.01")
    host = ClientHost(config, "intercept", [], tmp_path / "state")
    start = Parts({slot: host.algorithm.initial[slot] for slot in ("body", "head")})
    upload, report = host.train("0", 1, start)
    assert not torch.equal(upload["head"].vector, start["head"].vector)
    assert 0 < report["epsilon"] <= config.privacy.epsilon
    assert host.algorithm.phases()[0].released is False
