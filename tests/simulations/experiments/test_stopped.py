"""A run that was stopped: its figures, its models, and the command that goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fedpers.config import load_config
from fedpers.data import load_data
from simulations.backends.serial import run_serial
from simulations.commands.cli import app
from simulations.commands.console import how_to_go_on

OVERRIDES = ["data.clients=4", "rounds=4", "evaluation.every=1"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def stop_at(text: str, folder: Path) -> None:
    """Run until a line begins so, and then as by Ctrl-C."""

    def show(line: str) -> None:
        if line.startswith(text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_serial(load_config("configs/digits.yaml", OVERRIDES), folder, show=show)


def test_report_predict_and_going_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop_at("round 3/4", folder)  # its results are written, its checkpoint is not
    assert not (folder / "report.json").exists()
    told = invoke("report", str(folder))
    assert told.exit_code == 0, told.stderr
    assert "stopped after round 3 of 4" in told.stdout and "personal" in told.stdout
    page = (folder / "report.html").read_text()
    assert "This run was stopped after round 3 of 4." in page and "<h1>ditto on digits</h1>" in page
    assert not (folder / "report.json").exists()  # or it would count as one that ended
    data = load_data(load_config("configs/digits.yaml", OVERRIDES))
    np.savez(tmp_path / "x.npz", x=data.client("1").test.x[:3].numpy())
    found = invoke("predict", str(folder), "--client", "1", "--input", str(tmp_path / "x.npz"))
    assert found.exit_code == 0, found.stderr
    manifests = [json.loads(p.read_text()) for p in folder.glob("adapters/*/manifest.json")]
    assert sorted(m["client"] for m in manifests) == ["0", "1", "2", "3"]
    assert all(m["round"] == 3 and m["stopped"] for m in manifests)
    command = how_to_go_on(["fedpers", "run", "configs/digits.yaml", *OVERRIDES], folder)
    start = "stopped; to go on: fedpers "
    assert command.startswith(start)
    more = shlex.split(command.removeprefix(start))
    went = invoke(*more, "--backend", "serial")
    assert went.exit_code == 0 and "resumed after round 2" in went.stdout
    assert "stopped" not in json.loads((folder / "adapters/1/manifest.json").read_text())


def test_before_a_round_was_over_there_is_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop_at("ditto: ", folder)
    assert how_to_go_on([], folder) == (
        "stopped before a round was over: there is nothing to go on with"
    )
    assert how_to_go_on([], None) == how_to_go_on([], folder)
    for command in (["report"], ["predict", "--client", "0", "--input", "x.npz"]):
        told = invoke(command[0], str(folder), *command[1:])
        assert told.exit_code == 2 and told.stderr.count("\n") == 1
    nowhere = invoke("report", str(tmp_path))
    assert nowhere.exit_code == 2 and "takes the folder of a run" in nowhere.stderr
