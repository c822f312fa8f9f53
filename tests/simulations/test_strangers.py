"""Somebody else on the network, at the ports of a run's Ray: without its token nothing is done."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
import ray.core.generated

from fedpers.config import Config, Simulation
from simulations.backends import guard
from simulations.backends.launcher import launch

TOYS = Path(__file__).parents[1] / "tools"
TASK = """
import os, sys, ray
ray.init(sys.argv[1], log_to_driver=False)
task = ray.remote(num_cpus=0)(lambda: os.getpid())  # the run's nodes have all cores
print("ran in", ray.get(task.remote(), timeout=60))
"""
# Not among the services that Ray generates for Python.
OBJECTS = [("ray.rpc.ObjectManagerService", name) for name in ("Push", "Pull", "FreeObjects")]


def stranger(address: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Somebody who runs a task of theirs in a Ray, with nothing of the run in the environment."""
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "RAY_TMPDIR": str(home)}
    # By itself Ray asks again each second for 20 seconds.
    return subprocess.run(
        [sys.executable, "-c", TASK, address],
        env={**own, "RAY_NUM_REDIS_GET_RETRIES": "2", **env},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )


def methods() -> Iterator[tuple[str, str]]:
    """Service and name of every message that Ray's servers may take."""
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                yield from ((service.full_name, method.name) for method in service.methods)
    yield from OBJECTS


def answers(address: str, token: str | None = None) -> Counter[str]:
    """How a server answers an empty message of each kind, by status."""
    header = [] if token is None else [("authorization", f"Bearer {token}")]
    found: Counter[str] = Counter()
    with grpc.insecure_channel(address) as channel:
        for service, name in methods():
            try:
                channel.unary_unary(f"/{service}/{name}")(b"", timeout=10, metadata=header)
                found["OK"] += 1
            except grpc.RpcError as error:
                found[error.code().name] += 1
    return found


def doors(processes: list[psutil.Process]) -> dict[str, str]:
    """Where they can be reached from other machines: an address and who listens there."""
    found = {}
    for process in processes:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and not one.laddr.ip.startswith("127."):
                host = "127.0.0.1" if one.laddr.ip == "::" else one.laddr.ip
                found[f"{host}:{one.laddr.port}"] = process.name()
    return found


@pytest.mark.slow
def test_without_the_token_a_runs_ray_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TOY", str(tmp_path / "go on"))
    monkeypatch.chdir(TOYS)
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        if line.startswith("answers"):  # both nodes are there
            attack(tmp_path)
            (tmp_path / "go on").touch()

    apps = {"serverapp": "toy_server:app", "clientapp": "toy_client:app"}
    shared = Config(simulation=Simulation(network="shared"))  # else there are no doors: below
    launch(shared, tmp_path / "run", **apps, show=show)  # type: ignore[arg-type]
    assert lines[-1] == "answers [40, 41]" and (tmp_path / "go on").exists()


def attack(home: Path) -> None:
    children = psutil.Process().children(recursive=True)
    (head,) = [one for one in children if one.name() == "gcs_server"]
    env = head.environ()
    token = env["RAY_AUTH_TOKEN"]
    processes = guard.marked(env[guard.MARK])

    # The token is in the environment of the run's processes, and nowhere else.
    assert not [one.cmdline() for one in processes if token in " ".join(one.cmdline())]
    files = [path for path in Path(env["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    assert any(path.name == "superlink.log" for path in files)
    assert not [path for path in files if token.encode() in path.read_bytes()]

    found = doors(processes)
    assert {"gcs_server", "raylet", "ray::ClientAppActor"} <= set(found.values())
    (agent,) = [address for address, name in found.items() if name == "ray::RuntimeEnvAgent"]
    with pytest.raises(urllib.error.HTTPError, match="401"):  # it would install what it is told to
        urllib.request.urlopen(f"http://{agent}/get_or_create_runtime_env", data=b"", timeout=10)
    for address in found.keys() - {agent}:
        without, wrong = answers(address), answers(address, "0" * len(token))
        assert set(without) == {"UNAUTHENTICATED", "UNIMPLEMENTED"} and without == wrong, address

    (address,) = [address for address, name in found.items() if name == "gcs_server"]
    for tokens in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * len(token)}):
        refused = stranger(address, home, **tokens)
        assert refused.returncode == 1 and "ran in" not in refused.stdout
        assert "InvalidAuthToken" in refused.stderr
    known = stranger(address, home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert known.stdout.startswith("ran in"), known.stderr
