"""The method of empirical Bayes: whole runs through every channel, and what it may never be."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fedpers import choosing
from fedpers.errors import ConfigError

SHORT = ["rounds=3", "model.pretrain.task=none", "model.lora=null", "training.lr=0.1"]
SEALED = ["encryption.enabled=true", "encryption.scheme=bfv"]
MASKED = ["encryption.enabled=true", "encryption.scheme=masked"]
PRIVATE = ["privacy.enabled=true", "privacy.epsilon=8", "privacy.deterministic_for_tests=true"]


def accuracy(made: Any, mode: str = "personal") -> float:
    """The mean over clients."""
    return float(made.report["accuracy"][mode]["mean"])


def test_it_is_no_worse_than_global_and_local_and_the_same_whatever_hides_it(run: Any) -> None:
    plain = run("eb", *SHORT, "evaluation.local_baseline=true")
    assert plain.failures() == {}
    assert accuracy(plain) >= accuracy(plain, "global") - 0.02
    assert accuracy(plain) >= accuracy(plain, "local") - 0.02
    for channel in (SEALED, MASKED):
        hidden = run("eb", *SHORT, *channel)
        assert hidden.failures() == {}
        assert accuracy(hidden) == pytest.approx(accuracy(plain), abs=0.05)


def test_private_it_pays_for_three_sums_and_its_rounds(run: Any) -> None:
    made = run("eb", *SHORT, *PRIVATE)
    assert made.report["privacy"]["epsilon_max"] <= 8 + 1e-6
    for ledger in made.folder.rglob("ledgers/*.json"):
        releases = json.loads(ledger.read_text())["releases"]
        steps = {row["sigma"]: row["steps"] for row in releases}
        assert sorted(steps.values()) == [3, 3]  # as many rounds as sums, each at its own noise


def test_local_training_is_private_as_it_sends_nothing(run: Any) -> None:
    assert run("local", *SHORT, *PRIVATE).failures() == {}


def test_folded_it_chooses_as_one_by_one(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    alone, folded = run("eb", *SHORT), run("eb", *SHORT, "training.fold=3")
    assert accuracy(folded) == pytest.approx(accuracy(alone), abs=0.02)


@pytest.mark.parametrize("name", ["local", "fedavg-ft"])
def test_baselines_choose_by_the_same_sums(run: Any, name: str) -> None:
    choose = "strategy.params.choose=true"
    plain = run(name, *SHORT, choose)
    assert plain.failures() == {} and accuracy(plain) > 0.3
    if name == "fedavg-ft":
        hidden = run(name, *SHORT, choose, *MASKED)
        assert accuracy(hidden) == pytest.approx(accuracy(plain), abs=0.05)
    else:  # it has no channel
        with pytest.raises(ConfigError, match=r"strategy\.params\.choose"):
            run(name, *SHORT, choose, *MASKED)


def test_a_client_without_examples_costs_nobody(run: Any) -> None:
    made = run("eb", *SHORT, "data.max_val=0")
    assert made.failures() == {}  # nobody has a loss: the first of each grid, the global model
    assert accuracy(made) == pytest.approx(accuracy(made, "global"), abs=1e-9)


def test_grids_have_the_global_model_and_local_training_alone() -> None:
    weights = choosing.mixtures(4)
    assert weights[0] == (1, 0, 0, 0) and (0, 0, 0, 1) in weights and len(set(weights)) == 255
    assert choosing.epochs(20) == (0, 1, 2, 3, 5, 8, 12, 20)
    assert choosing.stretches(20) == [1, 1, 1, 2, 3, 4, 8]
    assert choosing.rounds(40) == (3, 5, 10, 20, 30, 40)


def test_losses_are_bounded_whatever_a_model_says() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0])
    rows, bound = choosing.losses([odd, odd])
    assert rows.tolist() == [[8, 8], [8, 8], [8, 8], [3, 3]]
    assert float(rows.norm(dim=1).max()) <= bound
