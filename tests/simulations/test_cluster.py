"""A run on a Ray cluster that is somebody else's: two raylets, which stand for two machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from simulations.backends import guard

ROOT = Path(__file__).parents[2]
ACTOR = "ray::ClientAppActor"  # as Ray titles the processes that compute for Flower's nodes
SETTINGS = [
    *("rounds=2", "data.partition.name=file", "data.partition.path=split.npz"),
    *("data.val_fraction=0", "model.name=mlp", "evaluation.every=1"),
    *("simulation.nodes=2", "simulation.cpus_per_node=1"),
]
CLIENTS, EACH = 6, 60


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two raylets of one core each, so that two actors of one core cannot be on the same."""
    # Ray's socket paths start with it and may have 107 bytes. It also keeps this cluster's address
    # out of /tmp/ray, where others would find and join it.
    folder = tempfile.mkdtemp(prefix="fedpers-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    # It was started elsewhere: all that its workers know of a run is what the run sends them.
    for name in ("RAY_ADDRESS", "PYTHONPATH", "FEDPERS_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        found.add_node(num_cpus=1)
        yield found
    finally:
        found.shutdown()  # type: ignore[no-untyped-call]
        shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, backend: str, **env: str) -> subprocess.Popen[str]:
    """A run of the command line, its output in files of ``folder``.

    Who has which examples is in a file that the nodes find by FEDPERS_DATA alone.
    """
    (folder / "data").mkdir(parents=True)
    split: dict[str, Any] = {}
    for k in range(CLIENTS):
        train, test = np.split(np.arange(k * EACH, (k + 1) * EACH), [EACH * 2 // 3])
        split |= {f"train_{k}": train, f"test_{k}": test}
    np.savez(folder / "data" / "split.npz", **split)
    (folder / "work").mkdir()
    (folder / "work" / "empty.yaml").write_text("seed: 0\n")
    command = [sys.executable, "-m", "simulations.commands.cli", "run", "empty.yaml", *SETTINGS]
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"}
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            [*command, "--backend", backend],
            cwd=folder / "work",
            env={**inherited, "PYTHONPATH": str(ROOT), "FEDPERS_DATA": "../data", **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def counts(folder: Path) -> dict[tuple[int, str], Any]:
    """By round and client, how many answers of each model were right."""
    (file,) = folder.glob("work/runs/*/clients.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {(line["round"], line["client"]): line for line in lines}


def actors_of(raylet: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in raylet.children():
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(ACTOR):
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found


@pytest.mark.slow
def test_a_run_on_two_raylets_is_a_serial_run_and_leaves_the_cluster_alone(
    tmp_path: Path, cluster: Cluster
) -> None:
    raylets = [
        psutil.Process(node.all_processes["raylet"][0].process.pid)
        for node in cluster.list_all_nodes()  # type: ignore[no-untyped-call]
    ]
    assert len(raylets) == 2
    ours: set[psutil.Process] = set()
    hosted: list[set[psutil.Process]] = [set(), set()]
    run = start(tmp_path / "ray", "ray", RAY_ADDRESS=cluster.address)
    while run.poll() is None:
        ours |= set(psutil.Process(run.pid).children(recursive=True))
        for raylet, seen in zip(raylets, hosted, strict=True):
            seen.update(actors_of(raylet))
        try:
            run.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    assert run.returncode == 0, (tmp_path / "ray" / "output").read_text()
    assert [len(seen) for seen in hosted] == [1, 1]

    # Nothing of the launch is left: neither its own processes nor its actors in the cluster.
    assert len(ours) >= 5  # guard, SuperLink, its SuperExec, log stream, simulation
    actors = hosted[0] | hosted[1]
    psutil.wait_procs(actors, timeout=20)  # Ray ends them when their driver has gone
    assert not [one for one in ours | actors if guard._runs(one)]

    # The cluster is as it was, and computes.
    assert all(guard._runs(raylet) for raylet in raylets)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        assert [node["Alive"] for node in nodes] == [True, True]
        task = ray.remote(lambda: ray.get_runtime_context().get_node_id())
        found = [
            task.options(  # on this raylet, however busy the other is
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
        ]
        assert ray.get(found, timeout=60) == [node["NodeID"] for node in nodes]
    finally:
        ray.shutdown()

    serial = start(tmp_path / "serial", "serial")
    assert serial.wait() == 0, (tmp_path / "serial" / "output").read_text()
    expected = counts(tmp_path / "serial")
    assert counts(tmp_path / "ray") == expected
    assert len(expected) == 2 * CLIENTS
