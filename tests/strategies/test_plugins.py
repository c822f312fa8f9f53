"""Methods of other people's packages, by dotted path; among them some that break down."""

from __future__ import annotations

from typing import Any

import pytest

from fedpers.errors import FedpersError

# Fewer than 30 lines for a method of one's own: FedProx, with the median of heads on the server.
PLUGIN = '''"""FedProx on the clients; on the server a mean that leaves out the extremes."""
from dataclasses import dataclass

import torch

from clients.base import LocalAlgorithm
from fedpers.config import setting
from fedpers.phases import Phase, Prox
from strategies.base import Mixing, PersonalizedStrategy


@dataclass
class ProxParams:
    mu: float = setting(0.1, above=0)


class FedProx(LocalAlgorithm):
    Params = ProxParams

    def phases(self):
        anchor = {slot: f"received.{slot}" for slot in self.slots}
        prox = Prox(self.params.mu, anchor)
        model = self.branch(())
        return [Phase(name="prox", model=model, trains=self.slots, released=True, prox=prox)]


class Equal(PersonalizedStrategy):
    algorithm = f"{__name__}:FedProx"
    weights = "own"

    def mixing(self, server_round, reports):
        return Mixing(torch.full((1, len(reports)), 1 / len(reports)))
'''

FRAGILE = '''"""Breaks down on the data of client 3."""
from clients.methods.ditto import Ditto as Algorithm
from fedpers.parts import Parts
from strategies.methods.ditto import Ditto as Strategy


class Raises(Algorithm):
    def train(self, working, trainer):
        if trainer.client == "3":
            raise ValueError("odd\\nvalues")
        return super().train(working, trainer)


class Poisons(Algorithm):
    def train(self, working, trainer):
        working = super().train(working, trainer)
        if trainer.client == "3":
            head = working["head"]
            working = working | {"head": head.like(head.vector / 0 * 0)}
        return working


class Reshapes(Algorithm):
    def train(self, working, trainer):
        working = super().train(working, trainer)
        return working | {"head": working["body"]} if trainer.client == "3" else working


class Stumbles(Algorithm):
    def tune(self, working, trainer, batches=None):
        if trainer.client == "3":
            raise KeyError("no prediction")
        return working


class Breaks(Algorithm):
    def train(self, working, trainer):
        raise ValueError("for everyone")


class WithRaises(Strategy):
    algorithm = f"{__name__}:Raises"


class WithPoisons(Strategy):
    algorithm = f"{__name__}:Poisons"


class WithReshapes(Strategy):
    algorithm = f"{__name__}:Reshapes"


class WithStumbles(Strategy):
    algorithm = f"{__name__}:Stumbles"


class WithBreaks(Strategy):
    algorithm = f"{__name__}:Breaks"
'''


def test_a_method_of_ones_own_needs_one_small_module(run: Any, plugin: Any) -> None:
    name = plugin("mine", PLUGIN)
    assert len([line for line in PLUGIN.splitlines() if line.strip()]) < 30
    found = run(f"{name}:Equal", "strategy.params.mu=0.5")
    assert found.report["strategy"] == f"{name}:Equal"
    assert found.failures() == {} and found.report["scored"]["clients"] == 6
    with pytest.raises(FedpersError, match=r"strategy\.params\.mu: got -1\.0, takes a number > 0"):
        run(f"{name}:Equal", "strategy.params.mu=-1")
    with pytest.raises(FedpersError, match=r"strategy\.params\.nu: got 1, takes one of: mu"):
        run(f"{name}:Equal", "strategy.params.nu=1")


def test_its_penalty_reaches_the_trainer(run: Any, plugin: Any) -> None:
    name = plugin("mine", PLUGIN)
    settings = ["rounds=1", "training.epochs=5", "evaluation.adapters=true"]
    loose, tight = (
        run(f"{name}:Equal", *settings, f"strategy.params.mu={mu}") for mu in ("1e-6", "3")
    )
    # Held near its start, the head of zeros, a model has learned less.
    assert tight.rounds[0]["loss"] > loose.rounds[0]["loss"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Raises", "ValueError: odd values"),
        ("Poisons", "ClientError: upload: part 'head' is not finite"),
        ("Reshapes", "ClientError: upload: got Parts({'body': Part("),
    ],
)
def test_a_client_that_breaks_down_in_training_is_left_out_by_name(
    run: Any, plugin: Any, kind: str, reason: str
) -> None:
    found = run(f"{plugin('fragile', FRAGILE)}:With{kind}", "simulation.nodes=1")
    errors = [line for line in found.clients if "error" in line]
    assert [(line["round"], line["client"]) for line in errors] == [(1, "3"), (2, "3")]
    assert all(line["error"].startswith(reason) for line in errors)
    assert [line["answered"] for line in found.rounds] == [5, 5]
    assert all(set(line["failed"]) == {"3"} for line in found.rounds)
    # It is scored all the same, with what it has; nobody's weights were spoilt.
    assert set(found.scored(2)) == {str(k) for k in range(6)}
    assert found.report["accuracy"]["global"]["mean"] > 0.1


def test_a_client_that_cannot_be_scored_is_named_too(run: Any, plugin: Any) -> None:
    found = run(f"{plugin('fragile', FRAGILE)}:WithStumbles")
    assert found.failures() == {"3": "KeyError: 'no prediction'"}
    assert set(found.scored(2)) == {"0", "1", "2", "4", "5"}
    assert found.report["scored"]["clients"] == 5
    assert [line["answered"] for line in found.rounds] == [6, 6]


def test_a_run_fails_when_nobody_is_left(run: Any, plugin: Any) -> None:
    line = r"^round 2: no client is left; client \d: ValueError: for everyone$"
    with pytest.raises(FedpersError, match=line):
        run(f"{plugin('fragile', FRAGILE)}:WithBreaks")
