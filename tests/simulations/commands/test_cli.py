"""The command line: exit codes, and errors of one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fedpers
import simulations.commands
from simulations.commands.cli import app


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("rounds: 1\ndata: {clients: 4}\n")
    return "x.yaml"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["rouns=3"], "error: rouns: got 3, takes one of the keys: "),
        (["rounds=many"], "error: rounds: got 'many', takes an integer >= 1"),
        (["data.partition.alpha=0"], "error: data.partition.alpha: got 0"),
        (["rounds"], "error: override: got 'rounds', takes key=value"),
        (["strategy.name=nosuch"], "error: strategy.name: got 'nosuch', takes one of "),
        (["simulation.gpus_per_node=99"], "error: simulation.gpus_per_node: got 99.0"),
        (["--backend", "serial", "data.name=nosuch"], "error: data.name: got 'nosuch'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    settings: str, tmp_path: Path, overrides: list[str], line: str
) -> None:
    result = invoke("run", settings, *overrides)
    assert result.exit_code == 2
    assert result.stdout.count("\n") <= 1  # what is about to run
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("run", "no.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: config: got 'no.yaml', takes a readable YAML file (No such file or directory)\n"
    )


def test_a_run_that_failed_is_one_line_and_exit_code_1(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "unscorable.py").write_text(
        "from clients.methods.fedavg import FedAvg\n"
        "from strategies.methods.fedavg import FedAvg as Server\n"
        "class Odd(FedAvg):\n"
        "    def predict(self, *given):\n"
        "        raise ValueError('odd')\n"
        "class Strategy(Server):\n"
        "    algorithm = 'unscorable:Odd'\n"
    )
    wanted = ["strategy.name=unscorable:Strategy", "model.name=mlp", "evaluation.outside=0"]
    result = invoke("run", settings, *wanted, "evaluation.local_baseline=false", "--backend=serial")
    assert result.exit_code == 1
    (folder,) = (tmp_path / "runs").iterdir()
    reason = "round 1: no client was evaluated; client 0: ValueError: odd"
    line = f"error: {reason}; what there is of the run is in {folder}\n"
    assert result.stderr == line
    assert (folder / "report.json").exists() and (folder / "report.html").exists()


def test_version() -> None:
    assert invoke("--version").stdout == f"fedpers {fedpers.__version__}\n"


def test_help_imports_nothing_that_takes_seconds() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from simulations.commands.cli import app\n"
        "for command in ([], ['run'], ['keys', 'new'], ['device', 'check'], ['devices', 'demo']):\n"
        "    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0\n"
        "slow = {'torch', 'numpy', 'flwr', 'ray', 'tenseal', 'matplotlib', 'omegaconf', 'peft'}\n"
        "print(*sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"


def test_every_command_has_a_file_of_its_own() -> None:
    folder = Path(simulations.commands.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "cli", "console"}
    named = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert files == named | {str(group.name) for group in app.registered_groups}
