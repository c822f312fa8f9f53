"""Ditto and PerAda: a personal branch held near what was received, beside the one that is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedpers.context import Context
from fedpers.parts import Parts

BOTH = ("body", "head")
CASES = [("ditto", "mu"), ("perada", "lam")]


@pytest.mark.parametrize(("name", "weight"), CASES)
def test_one_step_of_each_branch_by_hand(toys: Any, name: str, weight: str) -> None:
    # x = (1, 2), y = 0. Both heads are zero, so p = (1/2, 1/2), dW = [[-.5, -1], [.5, 1]],
    # db = (-.5, .5), and no gradient reaches a body. lr = 0.1, mu = 2.
    # Personal: v - lr (grad + mu (v - w)). Its body 3 I is held near I: 3 - .1 * 2 * 2 = 2.6.
    # Its bias (1, 1) is held near 0, but its softmax is even too: 1 - .1 (-.5 + 2 * 1) = .85 and
    # 1 - .1 (.5 + 2) = .75. Its W = 0 is where the received one is: no pull, .1 * (.5, 1).
    # Its features are 3 x = (3, 6), so dW = [[-1.5, -3], [1.5, 3]].
    bound = toys.bind(name, f"strategy.params.{weight}=2", x=[[1.0, 2.0]], y=[0])
    received = toys.parts(torch.eye(2), torch.zeros(2, 2))
    own = toys.parts(3 * torch.eye(2), torch.zeros(2, 2), [1.0, 1.0])
    kept = Parts({f"personal.{slot}": part for slot, part in own.items()})
    working = bound.algorithm.train(
        bound.algorithm.receive(received, kept, Context("a", 1)), bound.trainer
    )
    v, close = working["personal.head"], torch.testing.assert_close
    close(working["personal.body"]["trunk.weight"], 2.6 * torch.eye(2))
    close(v["head.weight"], torch.tensor([[0.15, 0.3], [-0.15, -0.3]]))
    close(v["head.bias"], torch.tensor([0.85, 0.75]))
    # Shared: w - lr grad, from what was received, with features x.
    w = bound.algorithm.upload(working)
    close(w["body"]["trunk.weight"], torch.eye(2))
    close(w["head"]["head.weight"], torch.tensor([[0.05, 0.1], [-0.05, -0.1]]))
    close(w["head"]["head.bias"], torch.tensor([0.05, -0.05]))
    assert set(bound.algorithm.keep(working)) == {"personal.body", "personal.head"}


@pytest.mark.parametrize(("name", "weight"), CASES)
def test_the_anchor_is_what_was_received_and_the_stronger_the_nearer(
    toys: Any, name: str, weight: str
) -> None:
    distances = []
    for mu in ("0.001", "1", "9"):
        settings = [f"strategy.params.{weight}={mu}", "strategy.params.personal_epochs=100"]
        bound = toys.bind(name, *settings, "training.epochs=50")
        received = toys.random(bound.algorithm, BOTH, seed=1)
        working = bound.algorithm.train(
            bound.algorithm.receive(received, Parts(), Context("a", 1)), bound.trainer
        )
        gap = working["personal.head"].vector - received["head"].vector
        distances.append(float(gap.norm()))
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


@pytest.mark.parametrize(("name", "weight"), CASES)
def test_the_personal_branch_has_its_own_length_and_rate(toys: Any, name: str, weight: str) -> None:
    settings = ["strategy.params.personal_epochs=7", "strategy.params.personal_lr=0.4"]
    personal, shared = toys.bind(name, *settings).algorithm.phases()
    assert (personal.epochs, personal.lr) == (7, 0.4)
    assert (shared.epochs, shared.lr) == (None, None)
    assert (personal.released, shared.released) == (False, True)
    assert personal.prox.anchor == {"body": "received.body", "head": "received.head"}
    assert shared.prox is None and set(shared.model.values()) == {"body", "head"}
    first = toys.bind(name).algorithm.phases()[0]
    assert (first.epochs, first.lr, first.prox.mu) == (None, None, 1.0)
