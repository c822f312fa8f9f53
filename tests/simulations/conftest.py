"""The command line in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    *("rounds=6", "data.clients=5", "model.pretrain.epochs=2", "evaluation.every=2"),
    *("evaluation.local_baseline=false", "evaluation.outside=20", "evaluation.adapters=false"),
]
# The command line in a process that is killed when round 4 is over but for its checkpoint.
KILLED = """
import os, signal
import strategies.rounds as rounds

save = rounds.save_checkpoint

def die(folder, server_round, state):
    if server_round == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(folder, server_round, state)

rounds.save_checkpoint = die
from simulations.cli import main
main()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("out", "rounds=3")``: a small run on digits; ``killed=True``: until round 4."""
    started = []
    (tmp_path / "tmp").mkdir()

    def start(output: str, *settings: str, killed: bool = False) -> subprocess.Popen[str]:
        program = ["-c", KILLED] if killed else ["-m", "simulations.cli"]
        command = [sys.executable, *program, "run", "configs/digits.yaml"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "FEDPERS_CACHE": str(tmp_path / "cache")}
        env["TMPDIR"] = str(tmp_path / "tmp")
        process = subprocess.Popen(
            [*command, "--backend", "serial", *SMALL, f"output={tmp_path / output}", *settings],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
