"""Whole runs of the real apps by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedpers.parts import Parts

ROOT = Path(__file__).parents[2]
SMALL = """
rounds: 2
data: {clients: 6}
model: {name: mlp}
evaluation: {every: 1}
simulation: {nodes: 2}
"""


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """The report of a run in ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "simulations.commands.cli", "run", "small.yaml", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "round 2/2" in done.stdout
    (report,) = folder.glob("runs/*/report.json")
    return dict(json.loads(report.read_text()))


def test_a_serial_run_leaves_a_report(tmp_path: Path) -> None:
    report = run(tmp_path, "--backend", "serial")
    assert (report["clients"], report["rounds"]) == (6, 2)
    assert 0 < report["accuracy"]["personal"]["mean"] <= 1


@pytest.mark.slow
def test_ray_and_serial_give_the_same_numbers(tmp_path: Path) -> None:
    serial = run(tmp_path / "serial", "--backend", "serial")
    ray = run(tmp_path / "ray")
    for kind in ("personal", "global", "local"):
        assert ray["accuracy"][kind] == pytest.approx(serial["accuracy"][kind], abs=1e-6)


@pytest.mark.slow
def test_masked_sums_are_the_same_bits_through_ray_and_serial_whoever_hosts_whom(
    tmp_path: Path,
) -> None:
    """Masks are fresh in each run, and of the mean nothing is left of them."""
    found = []
    for name, how in [("serial", ["--backend", "serial"]), ("ray", []), ("six", [])]:
        more = ["simulation.nodes=6"] if name == "six" else []
        settings = ["encryption.enabled=true", "strategy.name=fedavg", *more]
        report = run(tmp_path / name, *settings, *how)
        assert report["encryption"]["scheme"] == "masked"
        *_, state = sorted((tmp_path / name).glob("runs/*/checkpoint/*/parts.safetensors"))
        found.append(Parts.load(state).digest())
    assert len(set(found)) == 1


@pytest.mark.slow
def test_two_nodes_host_two_hundred_clients(tmp_path: Path) -> None:
    few = ["data.clients=200", "data.partition.name=iid", "evaluation.local_baseline=false"]
    assert run(tmp_path, *few, "data.partition.min_size=1")["clients"] == 200
