"""Per-FedAvg's steps against exact derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.admission import check_private
from fedpers.context import Context
from fedpers.errors import ConfigError
from fedpers.parts import Parts

X = torch.tensor([[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0], [0.5, 3.0]])
Y = torch.tensor([0, 1, 1, 0])
BODY, HEAD = torch.tensor([[1.0, 0.3], [-0.2, 0.8]]), torch.tensor([[0.5, -0.4], [0.1, 0.7]])
ALPHA, BETA = 0.3, 0.2


def loss(w: Tensor) -> Tensor:
    """Of the model's ten numbers, in the order of its parts: body, head's weight, bias."""
    body, head, bias = w[:4].view(2, 2), w[4:8].view(2, 2), w[8:]
    return F.cross_entropy(X @ body.T @ head.T + bias, Y)


def one_step(toys: Any, order: str) -> Tensor:
    needed = {"first": 2, "hessian-free": 4}[order]
    bound = toys.bind(
        "perfedavg",
        *(f"strategy.params.alpha={ALPHA}", f"strategy.params.beta={BETA}"),
        *(f"strategy.params.order={order}", f"training.epochs={needed}"),
        x=X,
        y=Y,
    )
    working = bound.algorithm.receive(toys.parts(BODY, HEAD), Parts(), Context("a", 1))
    sent = bound.algorithm.upload(bound.algorithm.train(working, bound.trainer))
    return torch.cat([sent["body"].vector, sent["head"].vector])


def test_the_first_order_step(toys: Any) -> None:
    w = torch.cat([BODY.flatten(), HEAD.flatten(), torch.zeros(2)])
    gradient = torch.func.grad(loss)
    expected = w - BETA * gradient(w - ALPHA * gradient(w))
    torch.testing.assert_close(one_step(toys, "first"), expected)


def test_the_hessian_free_step(toys: Any) -> None:
    """Against the exact Hessian: (I - alpha H(w)) v, and it is not the first-order one."""
    w = torch.cat([BODY.flatten(), HEAD.flatten(), torch.zeros(2)])
    gradient, hessian = torch.func.grad(loss), torch.func.hessian(loss)(w)
    v = gradient(w - ALPHA * gradient(w))
    expected = w - BETA * (v - ALPHA * hessian @ v)
    torch.testing.assert_close(one_step(toys, "hessian-free"), expected, atol=2e-5, rtol=0)
    assert (one_step(toys, "first") - expected).abs().max() > 1e-3


def test_a_personal_model_is_a_step_away(toys: Any) -> None:
    bound = toys.bind("perfedavg", f"strategy.params.alpha={ALPHA}", x=X, y=Y)
    working = bound.algorithm.receive(toys.parts(BODY, HEAD), Parts(), Context("a", 1))
    tuned = bound.algorithm.tune(working, bound.trainer)
    w = torch.cat([BODY.flatten(), HEAD.flatten(), torch.zeros(2)])
    expected = w - ALPHA * torch.func.grad(loss)(w)
    found = torch.cat([tuned["body"].vector, tuned["head"].vector])
    torch.testing.assert_close(found, expected)


def test_a_difference_of_noised_gradients_is_refused(toys: Any) -> None:
    with pytest.raises(ConfigError, match=r"order: got 'hessian-free', takes first with privacy"):
        toys.bind("perfedavg", "strategy.params.order=hessian-free", "privacy.enabled=true")
    check_private("perfedavg", toys.bind("perfedavg", "privacy.enabled=true").algorithm)
