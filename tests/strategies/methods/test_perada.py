"""PerAda on the server: the distillation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_round import mix

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.parts import Part, Parts
from strategies.base import Mixing
from strategies.methods.perada import PerAda

W = [[2.0, -1.0], [-2.0, 1.0]]
FAST = ["strategy.params.kd_lr=0.05", "strategy.params.kd_batch=16"]


def update(body: float, scale: float, bias: float) -> Parts:
    """Logits of x: scale * body * W x + bias (1, -1)."""
    return Parts(
        {
            "body": Part.of({"trunk.weight": body * torch.eye(2)}),
            "head": Part.of(
                {
                    "head.weight": scale * torch.tensor(W),
                    "head.bias": torch.tensor([bias, -bias]),
                }
            ),
        }
    )


# A mean of products is not a product of means: ((1 * 1) + (-.5 * -.5)) / 2 = .625 W x is what the
# ensemble says, and .25 * .25 = .0625 W x the mean model.
UPDATES = {"a": update(1.0, 1.0, 0.5), "b": update(-0.5, -0.5, 0.1)}


def logits(parts: Parts, x: torch.Tensor) -> torch.Tensor:
    head = parts["head"]
    return x @ parts["body"]["trunk.weight"].T @ head["head.weight"].T + head["head.bias"]


def divergence(parts: Parts, x: torch.Tensor) -> float:
    """KL(softmax of the mean logits || softmax of the model's), a mean over x."""
    teacher = torch.stack([logits(update, x) for update in UPDATES.values()]).mean(0).softmax(1)
    student = logits(parts, x).log_softmax(1)
    return float((teacher * (teacher.log() - student)).sum(1).mean())


def one_round(strategy: Any, server_round: int = 1) -> tuple[Parts, Parts]:
    """The mean, and what the round makes of it."""
    mix(strategy, UPDATES, Mixing(torch.tensor([[0.5, 0.5]])))
    mean = strategy.parts
    strategy.refine(server_round)
    return mean, strategy.parts


def test_distillation_moves_towards_the_ensemble(bind: Any) -> None:
    strategy = bind("perada", *FAST)
    mean, distilled = one_round(strategy)
    torch.testing.assert_close(mean["body"]["trunk.weight"], 0.25 * torch.eye(2))
    x = strategy.public.x
    assert divergence(mean, x) > 0.01
    assert divergence(distilled, x) < 0.1 * divergence(mean, x)
    teacher = torch.stack([logits(u, x) for u in UPDATES.values()]).mean(0)
    torch.testing.assert_close(strategy._teacher, teacher)
    # The same again gives the same bits, another round draws other batches.
    for server_round, same in ((1, True), (2, False)):
        _, again = one_round(bind("perada", *FAST), server_round)
        assert torch.equal(again["head"].vector, distilled["head"].vector) is same


@pytest.mark.parametrize("lr", ["1000", "1e30"])
def test_it_is_dropped_if_the_divergence_rises(bind: Any, lr: str) -> None:
    mean, kept = one_round(bind("perada", f"strategy.params.kd_lr={lr}"))
    assert kept is mean


def test_the_divergence_is_judged_on_public_examples_held_out(bind: Any) -> None:
    strategy, judged, trained = bind("perada", *FAST), [], set()
    judge = strategy._divergence

    def note(found: torch.Tensor, index: torch.Tensor) -> float:
        judged.append((index, judge(found, index)))
        return judged[-1][1]

    def note_batch(model: Any, inputs: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            trained.update(map(tuple, inputs[0].tolist()))

    strategy._divergence = note
    strategy.model.register_forward_pre_hook(note_batch)
    mean, distilled = one_round(strategy)
    (first, before), (second, after) = judged
    assert torch.equal(first, second) and len(first) == len(strategy.public) // 5
    x = strategy.public.x[first]
    assert before == pytest.approx(divergence(mean, x), rel=1e-3)
    assert after == pytest.approx(divergence(distilled, x), rel=1e-2)
    held_out = set(map(tuple, x.tolist()))
    assert len(trained) == len(strategy.public) - len(held_out) and not trained & held_out


def test_only_the_first_rounds_are_distilled(bind: Any) -> None:
    params = [*FAST, "strategy.params.kd_rounds=2"]
    for server_round, distilled in ((1, True), (2, True), (3, False)):
        mean, after = one_round(bind("perada", *params), server_round)
        assert (after is not mean) is distilled


def test_it_can_be_switched_off(bind: Any) -> None:
    strategy = bind("perada", "strategy.params.distill=false")
    mean, after = one_round(strategy)
    assert after is mean


def test_distillation_needs_public_examples(bind: Any, toy_data: Any) -> None:
    config = load_config(None, ["strategy.name=perada"])
    toy_data(config)
    config.data.public_fraction = 9 / 60
    few = load_data(config)
    assert len(few.public) == 9
    line = r"data\.public_fraction: got 0\.15, takes .* 10 public .*; or set strategy\.params\.dis"
    with pytest.raises(ConfigError, match=line):
        PerAda.check(config, few)
    config.strategy.params = {"distill": False}
    assert PerAda.check(config, few).distill is False


def test_the_mean_may_be_weighted_by_examples(bind: Any) -> None:
    reports = {"a": {"examples": 1}, "b": {"examples": 3}}
    weighted = bind("perada", "strategy.params.weights=examples")
    assert weighted.mixing(1, reports).weights.tolist() == [[0.25, 0.75]]
    assert bind("perada").mixing(1, reports).weights.tolist() == [[0.5, 0.5]]
    with pytest.raises(ConfigError, match=r"^strategy\.params\.weights: got 'size', takes one of"):
        bind("perada", "strategy.params.weights=size")


def test_teachers_weigh_as_their_models_do(bind: Any) -> None:
    strategy = bind("perada", *FAST, "strategy.params.weights=examples")
    mix(strategy, UPDATES, Mixing(torch.tensor([[0.25, 0.75]])))
    strategy.refine(1)
    a, b = (logits(update, strategy.public.x) for update in UPDATES.values())
    torch.testing.assert_close(strategy._teacher, 0.25 * a + 0.75 * b)
