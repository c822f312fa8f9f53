"""Whole runs of a regression: every method, in the clear, private, encrypted, folded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clients.base import algorithms
from fedpers.config import load_config
from fedpers.data import load_data
from simulations.attacks.inversion import invert
from simulations.attacks.membership import membership
from simulations.attacks.one_run import lower_bound
from simulations.backends.checks import absolute_paths, check
from simulations.backends.serial import run_serial
from simulations.commands.cli import app
from simulations.experiments.predict import FinishedRun, table
from simulations.experiments.watch import read_state

SHORT = (
    *("rounds=2", "simulation.nodes=1", "evaluation.every=2", "data.clients=5"),
    *("data.partition.name=iid", "model.pretrain.task=none", "evaluation.outside=20"),
)
PRIVATE = (
    *("privacy.enabled=true", "privacy.delta=0.001", "privacy.steps=2", "privacy.lr=0.5"),
    *("privacy.deterministic_for_tests=true", "evaluation.diagnostics=true"),
)
ENCRYPTED = "encryption.enabled=true"
CLASSES_ONLY = {name for name in algorithms.names() if algorithms.get(name).tasks}


def run(folder: Path, method: str, *overrides: str) -> dict[str, Any]:
    """The report of a short run."""
    settings = [*SHORT, f"strategy.name={method}", *overrides, f"output={folder}"]
    config = absolute_paths(load_config("configs/diabetes.yaml", settings))
    check(config)
    run_serial(config, folder / "run", show=lambda line: None)
    found: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return found


@pytest.mark.parametrize("method", sorted({*algorithms.names()} - CLASSES_ONLY))
def test_every_method_learns_numbers(method: str, tmp_path: Path) -> None:
    report = run(tmp_path, method)
    assert report["task"]["names"] == ["progression"] and report["task"]["headline"] == "rmse"
    # The target's spread is 77: whoever predicts its mean is so far off.
    best = min(found["mean"] for found in report["rmse"].values() if found)
    assert 30 < best < 77 and "accuracy" not in report


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("fedavg", PRIVATE),
        ("fedper", PRIVATE),
        ("perada", (*PRIVATE, "strategy.params.distill=false")),
        ("ditto", (*PRIVATE, "training.fold=4")),
        ("ditto", (*PRIVATE, ENCRYPTED)),
        ("fedavg", ("privacy.enabled=true", "privacy.unit=client", "privacy.delta=0.01")),
        ("fedavg", (ENCRYPTED,)),
        ("fedper", (ENCRYPTED, "encryption.scheme=ckks")),
        ("perada", (ENCRYPTED,)),
        ("perada", ("training.fold=4",)),
    ],
)
def test_in_all_ways(method: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    report = run(tmp_path, method, *overrides, "evaluation.diagnostics=true")
    assert report["scored"]["clients"] == 5 and report["rmse"]["personal"]["mean"] < 200
    if "privacy.unit=client" not in overrides and "privacy.enabled=true" in overrides:
        assert 0 < report["privacy"]["epsilon_max"] <= 8


def test_folded_gives_what_one_by_one_gives(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", "ditto")
    folded = run(tmp_path / "folded", "ditto", "training.fold=4")
    for mode in ("personal", "global"):
        assert folded["rmse"][mode] == pytest.approx(alone["rmse"][mode], rel=1e-4)


def test_a_method_about_classes_is_refused(tmp_path: Path) -> None:
    line = "error: strategy.name: got 'prior', takes a method for regression, and this one is for"
    result = CliRunner().invoke(
        app, ["run", "configs/diabetes.yaml", "strategy.name=prior", "--backend", "serial"]
    )
    assert result.exit_code == 2 and result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


def test_numbers_without_the_task_are_told_the_cure(tmp_path: Path) -> None:
    rows = "".join(f"{k},{k / 7}\n" for k in range(40))
    (tmp_path / "a.csv").write_text("x,dose\n" + rows)
    settings = [
        f"data.path={tmp_path / 'a.csv'}",
        *("data.name=csv", "data.columns.features=[x]", "data.columns.label=dose"),
        *("data.clients=2", "data.partition.name=iid", "model.name=mlp"),
    ]
    result = CliRunner().invoke(app, ["run", "configs/digits.yaml", *settings])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "dose: got float64" in result.stderr and "set task.name=regression" in result.stderr
    config = load_config(None, [*settings, "task.name=regression"])
    data = load_data(config)
    assert data.task.names == ("dose",)


def test_predictions_and_pages_are_in_the_targets_unit(tmp_path: Path) -> None:
    report = run(tmp_path, "ditto", "task.params.unit=points", "task.params.tolerance=5")
    finished = FinishedRun(tmp_path / "run")
    client = finished.client("0")
    own = finished.data.client(client).test
    found = finished.predict(client, own.x)
    mean, sd = finished.data.task.scale  # type: ignore[attr-defined]
    errors = sd * (found.scores["personal"][:, 0] - own.y)
    lines = [json.loads(x) for x in (tmp_path / "run" / "clients.jsonl").read_text().splitlines()]
    told = {line["client"]: line["test"] for line in lines}[client]
    assert float(errors.square().sum()) == pytest.approx(told["squared"]["personal"], rel=1e-4)
    shown = table(found)
    assert shown.title == f"client {client}: progression in points"
    first = float(next(iter(shown.columns[1].cells)))
    assert first == pytest.approx(mean + sd * float(found.scores["personal"][0]), rel=1e-3)
    page = (tmp_path / "run" / "report.html").read_text()
    value = report["rmse"]["personal"]["mean"]
    assert f"has a root mean squared error of {value:.1f} points on its own test examples" in page
    assert "accuracy" not in page.lower().replace("bcaccuracy", "")
    manifest = json.loads(next((tmp_path / "run" / "adapters").glob("*/manifest.json")).read_text())
    assert manifest["task"]["params"]["name"] == "progression"


def test_odd_targets_of_a_private_client_are_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((80, 3)).astype(np.float32), rng.standard_normal(80)
    y[7] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=y)
    settings = ["data.name=npz", f"data.path={tmp_path / 'a.npz'}", "task.name=regression"]
    settings += ["data.partition.name=iid", "data.clients=2", "model.name=mlp"]
    with pytest.raises(Exception, match="targets: got NaN"):
        load_data(load_config(None, settings))
    private = load_data(load_config(None, [*settings, "privacy.enabled=true"]))
    owned = [private.client(c) for c in private.clients]
    y_all = torch.cat([e.y for d in owned for e in (d.train, d.val, d.test)] + [private.public.y])
    assert len(y_all) == 80 and bool(torch.isfinite(y_all).all())


def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "steady.py").write_text(
        "from fedpers.tasks import Regression\n\n\n"
        "class Steady(Regression):\n"
        "    def loss(self, outputs, targets):\n"
        "        return (outputs.scores[:, 0] - targets).abs()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    report = run(tmp_path, "ditto", "task.name=steady:Steady")
    assert report["task"]["name"] == "steady:Steady" and report["rmse"]["personal"]["mean"] < 77
    manifest = json.loads(next((tmp_path / "run" / "adapters").glob("*/manifest.json")).read_text())
    assert manifest["task"]["name"] == "steady:Steady"
    state = read_state(tmp_path / "run")
    assert state.ended and len(state.values("personal")) == 5


def test_membership_and_inversion_ask_the_task(tmp_path: Path) -> None:
    config = absolute_paths(load_config("configs/diabetes.yaml", [*SHORT, "strategy.name=fedavg"]))
    found = membership(config, shadows=2)
    assert 0 <= found["global"]["lira"]["auc"] <= 1 and 0 <= found["upload"]["loss"]["auc"] <= 1
    originals, rebuilt = invert(config, examples=1, steps=3)
    assert originals.shape == rebuilt.shape == (1, 10)
    private = absolute_paths(
        load_config("configs/diabetes.yaml", [*SHORT, *PRIVATE, "strategy.name=fedavg"])
    )
    assert lower_bound(private, canaries=10)["canaries"] == 10
