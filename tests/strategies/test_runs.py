"""Whole runs of every method, through the serial backend."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import FedpersError
from fedpers.models import base_model
from strategies.base import strategies

METHODS = strategies.names()
CLIENTS = [str(k) for k in range(6)]
NO_GLOBAL = ("local", "fedper", "fedrep", "dfedalt", "gpfl", "ifca")
# They keep a whole personal adapter, so that sharing A alone has no meaning for them.
WHOLE = (
    *(
        "apfl",
        "ditto",
        "eb",
        "fedala",
        "fedavg-ft",
        "fedbabu",
        "feddpa",
        "fedsoup",
        "map",
        "perada",
    ),
    *("pfedgraph", "pfedsim"),
)
FEW_STEPS = {
    "fedavg-ft": ["strategy.params.tune_epochs=3"],
    "fedbabu": ["strategy.params.tune_epochs=3"],
    "fedrep": ["strategy.params.head_epochs=3"],
    "perada": ["strategy.params.kd_steps=10"],
}


@pytest.fixture(scope="session")
def local_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What local-only training gets right, by client, once some test asked for it."""
    return {}


def check(run: Any, name: str) -> None:
    """The files of a run of two rounds with six clients, all of whom came through."""
    report = run.report
    assert report["strategy"] == name and report["rounds"] == 2
    assert run.failures() == {}
    assert [line["answered"] for line in run.rounds] == [6, 6]
    assert all(math.isfinite(line["loss"]) for line in run.rounds)
    assert report["scored"]["clients"] == 6 and report["scored"]["examples"] == 6 * 20
    for server_round in (1, 2):
        scored = run.scored(server_round)
        assert list(scored) == CLIENTS
        assert all("personal" in c["test"]["correct"] for c in scored.values())
    accuracies = [c["test"]["correct"]["personal"] / 20 for c in scored.values()]
    assert report["accuracy"]["personal"]["mean"] == pytest.approx(sum(accuracies) / 6)
    assert (report["accuracy"]["global"] is None) == (name in NO_GLOBAL)
    shared = [0, 0] if name == "local" else [1, 1]
    assert [bool(line["uplink_bytes"]) for line in run.rounds] == shared


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(run: Any, name: str, local_only: dict[str, int]) -> None:
    found = run(name, *FEW_STEPS.get(name, []), "evaluation.local_baseline=true")
    check(found, name)
    # The baseline is the same whatever the method: its forward pass is the plain one.
    baseline = {k: c["test"]["correct"]["local"] for k, c in found.scored(2).items()}
    assert (local_only or baseline) == baseline
    local_only.update(baseline)
    if name == "local":
        own = {k: c["test"]["correct"]["personal"] for k, c in found.scored(2).items()}
        assert own == baseline


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_whole_body(run: Any, name: str) -> None:
    check(run(name, *FEW_STEPS.get(name, []), "model.lora=null", "training.lr=0.05"), name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_shares_both_factors(run: Any, name: str) -> None:
    check(run(name, *FEW_STEPS.get(name, []), "model.lora.share=both"), name)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in WHOLE])
def test_some_methods_share_the_first_factor_alone(run: Any, name: str) -> None:
    check(run(name, *FEW_STEPS.get(name, []), "model.lora.share=a-only"), name)


def test_others_refuse_that_in_one_line(run: Any) -> None:
    line = r"^model\.lora\.share: got 'a-only', takes ffa or both: .* personal adapter already$"
    with pytest.raises(FedpersError, match=line):
        run("ditto", "model.lora.share=a-only")


def test_the_same_seed_gives_the_same_run_on_any_number_of_nodes(run: Any) -> None:
    settings = ["strategy.fraction=0.5", "rounds=3", "strategy.params.rho=0.3"]
    first, again = run("pfedsim", *settings), run("pfedsim", *settings)
    assert first.clients == again.clients
    other = run("pfedsim", *settings, "simulation.nodes=4")
    assert other.scored(3) == first.scored(3)
    assert run("pfedsim", *settings, "seed=1").scored(3) != first.scored(3)
    assert [line["answered"] for line in first.rounds] == [3, 3, 3]


def test_methods_learn(run: Any) -> None:
    settings = ["rounds=4", "training.epochs=8", "model.lora=null", "training.lr=0.1"]
    report = run("ditto", *settings, "evaluation.local_baseline=true").report
    # Three digits a client: a guess gets a third.
    assert report["accuracy"]["personal"]["mean"] > 0.8
    assert report["accuracy"]["local"]["mean"] > 0.8


def counts_of(line: dict[str, Any]) -> dict[str, Any]:
    """A line's counts on test, without their detail by class."""
    return {name: value for name, value in line["test"].items() if name != "detail"}


def test_saved_adapters_score_as_reported(run: Any, digits: list[str]) -> None:
    from peft import PeftModel

    settings = ["evaluation.adapters=true", "training.epochs=10", "model.pretrain.task=clusters"]
    settings += ["model.standardise=true", "model.pretrain.epochs=5"]
    found = run("ditto", *settings)
    folders = sorted((found.folder / "adapters").iterdir())
    assert [folder.name for folder in folders] == CLIENTS
    config = load_config(None, [*digits, "strategy.name=ditto", *settings])
    data = load_data(config)
    line = found.scored(2)["4"]
    model = PeftModel.from_pretrained(base_model(config, data), folders[4])
    test = data.client("4").test
    with torch.no_grad():
        right = int((model(test.x).logits.argmax(dim=1) == test.y).sum())
    assert right == line["test"]["correct"]["personal"] > 10
    manifest = json.loads((folders[4] / "manifest.json").read_text())
    assert manifest["client"] == "4" and manifest["round"] == 2
    assert manifest["run_id"] == found.folder.name and manifest["test"] == counts_of(line)


def test_an_earlier_round_chosen_by_validation_is_the_one_that_is_saved(
    run: Any, digits: list[str]
) -> None:
    from peft import PeftModel

    # Round 1 learns; the steps of round 2 are far too long.
    settings = ["evaluation.select=validation", "evaluation.adapters=true", "training.epochs=10"]
    found = None
    for lr in ("0.3", "3", "30"):
        found = run("fedavg-ft", *settings, "rounds=3", f"training.lr={lr}")
        if found.report["selected_round"] != 3:
            break
    assert found is not None
    chosen = found.report["selected_round"]
    assert chosen < 3
    config = load_config(None, [*digits, *settings])
    data = load_data(config)
    for client in CLIENTS:
        line = found.scored(chosen)[client]
        folder = found.folder / "adapters" / client
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["round"] == chosen and manifest["test"] == counts_of(line)
        model = PeftModel.from_pretrained(base_model(config, data), folder)
        test = data.client(client).test
        with torch.no_grad():
            right = int((model(test.x).logits.argmax(dim=1) == test.y).sum())
        assert right == line["test"]["correct"]["personal"]


def test_the_command_line_runs_a_file(
    digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from simulations.commands.cli import app

    (tmp_path / "x.yaml").write_text("rounds: 1\nstrategy: {name: fedper}\n")
    monkeypatch.chdir(tmp_path)
    settings = [setting for setting in digits if not setting.startswith("rounds")]
    result = CliRunner().invoke(app, ["run", "x.yaml", *settings, "--backend", "serial"])
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert report["strategy"] == "fedper" and report["rounds"] == 1
    bad = ["run", "x.yaml", *settings, "strategy.params.nu=1", "--backend", "serial"]
    result = CliRunner().invoke(app, bad)
    assert result.exit_code == 2 and "strategy.params.nu: got 1" in result.output
