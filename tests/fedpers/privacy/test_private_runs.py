"""Whole private runs in this process: what is spent, what is said, what ends them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from flwr.app import Message
from typer.testing import CliRunner

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.privacy.accounting import rounded_up
from fedpers.records import unpack
from simulations.backends.serial import SerialGrid
from simulations.commands.cli import app
from strategies.methods.fedavg import FedAvg

SETTINGS = (
    *("data.clients=5", "data.partition.name=iid", "model.name=mlp", "rounds=3"),
    *("privacy.enabled=true", "privacy.epsilon=4", "evaluation.local_baseline=false"),
    *("evaluation.adapters=false", "simulation.nodes=2", "strategy.name=fedper"),
)


class Ran(NamedTuple):
    code: int
    output: str
    error: str
    report: dict[str, Any]
    rounds: list[dict[str, Any]]


Go = Callable[..., Ran]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """``fedpers run`` on the serial backend; what it left."""

    def run(*overrides: str) -> Ran:
        config = tmp_path / "config.yaml"
        config.write_text("seed: 0\n")
        output = tmp_path / f"runs-{len(list(tmp_path.iterdir()))}"
        arguments = ["run", str(config), "--backend", "serial", *SETTINGS, *overrides]
        found = CliRunner().invoke(app, [*arguments, f"output={output}"])
        folders = list(output.glob("*/report.json"))
        report = json.loads(folders[0].read_text()) if folders else {}
        lines = (folders[0].parent / "rounds.jsonl").read_text() if folders else ""
        rounds = [json.loads(line) for line in lines.splitlines()]
        return Ran(found.exit_code, found.stdout, found.stderr, report, rounds)

    return run


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What every node answered, by kind of message."""
    seen: list[tuple[str, dict[str, Any]]] = []
    answer = SerialGrid._answer

    def listening(grid: SerialGrid, message: Message) -> Message:
        reply = answer(grid, message)
        seen.append((message.metadata.message_type, unpack(reply.content)[1]))
        return reply

    monkeypatch.setattr(SerialGrid, "_answer", listening)
    return seen


@pytest.fixture
def split(tmp_path: Path) -> str:
    """Five clients' rows of digits, the same for every seed; validation is carved by the seed."""
    rows, file = np.random.default_rng(0).permutation(1000), {}
    for client in range(5):
        own = rows[client * 200 : client * 200 + 200]
        file[f"train_{client}"], file[f"test_{client}"] = own[:150], own[150:]
    np.savez(tmp_path / "split.npz", **file)
    return f"data.partition.path={tmp_path / 'split.npz'}"


def test_the_report_gives_the_composed_epsilon(go: Go) -> None:
    settings = ("privacy.steps=2", "privacy.sampling_rate=0.5")
    ran = go(*settings)
    assert ran.code == 0
    privacy = ran.report["privacy"]
    sampled = PoissonSampledDpEvent(0.5, GaussianDpEvent(privacy["noise_multiplier"]))
    by_hand = PLDAccountant().compose(sampled, 3 * 2).get_epsilon(privacy["delta"])
    assert privacy["epsilon_max"] == privacy["epsilon_mean"] == pytest.approx(by_hand, rel=1e-3)
    assert 0.99 * 4 < privacy["epsilon_max"] <= 4
    assert 0.5 < privacy["mu"] < 6**0.5 / privacy["noise_multiplier"]
    assert privacy["unit"] == "example" and "connect the dots" in privacy["accountant"]
    assert privacy["neighbours"].endswith("(zero-out), the number of examples public")
    assert f"mu {rounded_up(privacy['mu'])} of Gaussian DP" in ran.output
    config = load_config(None, [*SETTINGS, *settings])
    largest = max(load_data(config).size(client) for client in "01234")
    assert privacy["delta"] < 1 / largest
    notes = "\n".join(privacy["notes"])
    assert "figures for simulation only" in notes and "another run" in notes
    assert "nobody is protected" not in notes
    assert [line["answered"] for line in ran.rounds] == [5, 5, 5]


def test_a_spent_budget_ends_the_run_cleanly(go: Go) -> None:
    # Calibrated for the one round that a fifth of three is, while min_clients has all take part.
    ran = go("strategy.fraction=0.2", "strategy.min_clients=5")
    assert ran.code == 0 and ran.error == ""
    assert [line["answered"] for line in ran.rounds] == [5, 0]
    failed = ran.rounds[1]["failed"]
    assert failed == dict.fromkeys("01234", "its privacy budget is spent")
    assert 0.99 * 4 < ran.report["privacy"]["epsilon_max"] <= 4
    assert "Traceback" not in ran.output


def test_clients_that_are_spent_sit_out_while_others_go_on(go: Go) -> None:
    # One client a round; four rounds' noise for six rounds' chances.
    ran = go("strategy.fraction=0.2", "rounds=10", "seed=1")
    assert ran.code == 0
    assert len(ran.rounds) == 10
    spent: list[str] = []
    for line in ran.rounds:
        assert line["answered"] + len(line["failed"]) == 1
        assert not set(spent) & set(line["failed"])  # asked once, then left out
        spent += line["failed"]
    assert 0 < len(spent) < 5
    assert [line["answered"] for line in ran.rounds].count(0) == len(spent)


def test_another_run_on_the_same_data_continues_the_account(
    go: Go, tmp_path: Path, split: str
) -> None:
    # Its public rows are those that no client has, whatever the seed.
    same = ("data.partition.name=file", split, f"state={tmp_path / 'state'}")
    first = go(*same)
    assert first.code == 0 and [line["answered"] for line in first.rounds] == [5, 5, 5]
    assert not any("another run" in note for note in first.report["privacy"]["notes"])
    assert len(list((tmp_path / "state" / "ledgers").glob("*.json"))) == 5
    for settings in ((), ("seed=7",), ("strategy.name=ditto",)):
        again = go(*same, *settings)
        assert again.code == 0 and again.error == ""
        (line,) = again.rounds
        assert line["answered"] == 0 and set(line["failed"]) == set("01234")
        assert "Traceback" not in again.output
        assert again.report["privacy"]["epsilon_max"] == pytest.approx(
            first.report["privacy"]["epsilon_max"]
        )
    assert len(list((tmp_path / "state" / "ledgers").glob("*.json"))) == 5
    more = go(*same, "privacy.epsilon=40")  # a larger budget for the same account
    assert more.rounds[0]["answered"] == 5
    assert 4 < more.report["privacy"]["epsilon_max"] <= 40


def test_without_a_state_folder_each_run_starts_anew(go: Go) -> None:
    for _ in range(2):
        assert [line["answered"] for line in go("rounds=1").rounds] == [5]


def test_without_diagnostics_no_result_leaves_a_client(
    go: Go, replies: list[tuple[str, dict[str, Any]]]
) -> None:
    ran = go("evaluation.diagnostics=false", "data.holdout_clients=1", "evaluation.every=1")
    assert ran.code == 0
    kinds = {kind for kind, _ in replies}
    assert kinds == {"query.roster", "train", "evaluate", "evaluate.newcomers"}
    for kind, body in replies:
        if kind == "train":
            for report in body["reports"].values():
                spending = {"epsilon", "delta", "mu", "sigma"}
                assert set(report) == {"examples", "loss", "noise", *spending}
                assert report["loss"] is None and report["examples"] == 1
        elif kind == "evaluate":
            assert body["held_back"] and body["results"] == []
        elif kind == "evaluate.newcomers":
            assert not any(body["results"].values())
    assert all(value is None for value in ran.report["accuracy"].values())
    assert not any(ran.report["cold_start"].values())
    assert all("loss" not in line and "personal" not in line for line in ran.rounds)
    assert not any("simulation only" in note for note in ran.report["privacy"]["notes"])


def test_weights_are_uniform_under_privacy(
    go: Go, replies: list[tuple[str, dict[str, Any]]]
) -> None:
    assert go("rounds=1", "data.partition.name=dirichlet").code == 0
    reports = [r for kind, body in replies if kind == "train" for r in body["reports"].values()]
    assert [report["examples"] for report in reports] == [1] * 5
    assert all(isinstance(report["loss"], float) for report in reports)  # with diagnostics


def test_weights_by_counts_are_the_noised_ones(
    go: Go, replies: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[list[float]] = []
    mixing = FedAvg.mixing

    def listening(strategy: FedAvg, *given: Any) -> Any:
        found = mixing(strategy, *given)
        weights.append(found.weights[0].tolist())
        return found

    monkeypatch.setattr(FedAvg, "mixing", listening)
    settings = ("strategy.name=fedavg", "privacy.weights=counts", "privacy.delta=1e-4")
    settings += ("data.partition.name=dirichlet",)
    ran = go(*settings, "rounds=2", "evaluation.diagnostics=false")
    assert ran.code == 0
    rounds: list[dict[str, float]] = [{}, {}]
    for kind, body in replies:
        if kind == "train":
            told = rounds[0] if len(rounds[0]) < 5 else rounds[1]
            told.update({client: r["examples"] for client, r in body["reports"].items()})
    assert rounds[0] == rounds[1] and set(rounds[0]) == set("01234")
    data = load_data(load_config(None, [*SETTINGS, *settings]))
    sizes = {client: data.size(client) for client in data.clients}
    assert rounds[0] != sizes  # sigma is about 8; all five untouched has chance 1e-7
    # An eighth of 1 / sigma of a release that takes all: about 8 examples, here six times that.
    assert all(abs(rounds[0][c] - sizes[c]) < 60 for c in sizes)
    expected = [rounds[0][c] / sum(rounds[0].values()) for c in "01234"]
    assert weights == [pytest.approx(expected)] * 2
    assert 0.99 * 4 < ran.report["privacy"]["epsilon_max"] <= 4
    told = "privacy.weights=uniform", "strategy.name=fedavg", "rounds=1"
    weights.clear()
    assert go(*told).code == 0 and weights == [[pytest.approx(0.2)] * 5]


@pytest.mark.parametrize(
    ("setting", "starts"),
    [
        ("privacy.delta=0.1", "error: privacy.delta: got 0.1, takes a number < 0.00"),
        ("privacy.sampling_rate=0.001", "error: privacy.sampling_rate: got 0.001, takes a number"),
        ("privacy.epsilon=0", "error: privacy.epsilon: got 0.0, takes a number > 0"),
        ("privacy.epsilon=.inf", "error: privacy.epsilon: got inf, takes a number > 0"),
        ("privacy.max_grad_norm=-1", "error: privacy.max_grad_norm: got -1.0, takes a number > 0"),
        ("strategy.name=fedala", "error: strategy.name: got 'fedala', takes with privacy"),
    ],
)
def test_what_protects_nobody_is_refused_before_training(
    go: Go, replies: list[tuple[str, dict[str, Any]]], setting: str, starts: str
) -> None:
    ran = go(setting)
    assert ran.code == 2
    assert ran.error.startswith(starts) and ran.error.count("\n") == 1
    assert not any(kind == "train" for kind, _ in replies)


@pytest.mark.slow
def test_a_run_by_a_mechanism_from_outside(go: Go, tmp_path: Path) -> None:
    settings = ["strategy.name=prior", "rounds=2", "privacy.delta=1e-4"]
    settings.append(f"state={tmp_path / 'kept'}")
    ran = go(*settings, "privacy.mechanism=spherical:Spherical")
    assert ran.code == 0, ran.error
    privacy = ran.report["privacy"]
    assert privacy["mechanism"] == "spherical:Spherical"
    ledgers = [path.read_text() for path in (tmp_path / "kept" / "ledgers").glob("*.json")]
    rows = [row for text in ledgers for row in json.loads(text)["releases"]]
    # Of pure epsilon sqrt(4096 + 1) / sigma each: two rounds, and counts of labels once.
    epsilons = {row["sigma"]: 4097**0.5 / row["sigma"] for row in rows}
    phases, counts = privacy["noise_multiplier"], max(epsilons)
    assert {row["kind"] for row in rows} == {"spherical"} and len(epsilons) == 2
    assert sorted(row["steps"] for row in rows) == 5 * [1] + 5 * [2]
    whole = 2 * epsilons[phases] + epsilons[counts]
    # With a probability far above delta the loss is all of it; a grid adds less than a hundredth.
    assert whole - 1e-3 < privacy["epsilon_max"] <= 4 < 1.01 * whole


def test_a_mechanism_that_nobody_knows_is_refused_before_anything(go: Go) -> None:
    for unit in ("example", "client"):
        ran = go("privacy.mechanism=laplace", f"privacy.unit={unit}", "strategy.name=fedavg")
        assert ran.code == 2 and ran.report == {}
        line = "privacy.mechanism: got 'laplace', takes one of gaussian, "
        assert ran.error.startswith(f"error: {line}")


def test_a_population_by_a_mechanism_from_outside(go: Go) -> None:
    settings = ["privacy.mechanism=spherical:Spherical", "privacy.unit=client"]
    settings += ["strategy.name=fedavg", "privacy.delta=1e-3", "rounds=2"]
    ran = go(*settings)
    assert ran.code == 0, ran.error
    privacy = ran.report["privacy"]
    # Two steps of pure e: the loss is 2 e with probability kept^2, or it is nothing.
    step = 4097**0.5 / privacy["noise_multiplier"]
    kept = 1 / (1 + math.exp(-step))
    by_hand = 2 * step + math.log1p(-1e-3 / kept**2)
    assert privacy["epsilon_max"] == pytest.approx(by_hand, rel=1e-3)
    sealed = go(*settings, "encryption.enabled=true")
    assert sealed.code == 2
    line = "privacy.mechanism: got 'spherical:Spherical', takes under encryption one whose noise"
    assert line in sealed.error
