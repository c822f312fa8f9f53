"""What the server's process holds in its memory, in a run through SuperLink and Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from fedpers.channels.sealed.guard import unframe
from fedpers.channels.sealed.keys import CLIENT_FILE, MAGIC, show
from fedpers.channels.sealed.lattice import Channel, Lattice
from fedpers.channels.sealed.parameters import Parameters
from simulations.backends import guard

ROOT = Path(__file__).parents[2]

CLIENT = '''"""Updates that hold a mark."""
import torch

from clients.base import LocalAlgorithm


class Marked(LocalAlgorithm):
    def upload(self, working):
        parts = super().upload(working)
        body = parts["body"].vector.clone()
        body[64:68] = torch.rand(4, generator=torch.Generator().manual_seed(77))
        return parts | {"body": parts["body"].like(body)}
'''

# The client's module is named only: the server's process never makes the mark itself.
SERVER = '''"""Waits after combining, to be looked at."""
import os
import time
from pathlib import Path

from strategies.methods.fedavg import FedAvg


class Waits(FedAvg):
    algorithm = "marked_client:Marked"

    def refine(self, server_round):
        folder = Path(self.run_folder)
        (folder / "part").write_text(f"{os.getpid()} {os.getcwd()}")
        (folder / "part").rename(folder / "pid")
        for _ in range(2000):
            if (folder / "go").exists():
                break
            time.sleep(0.05)


class WaitsAtOnce(Waits):
    weights = "equal"
'''


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """``start("marked_server:Waits", "encryption.enabled=true")``: the run, waiting."""
    (tmp_path / "marked_client.py").write_text(CLIENT)
    (tmp_path / "marked_server.py").write_text(SERVER)
    (tmp_path / "tmp").mkdir()
    began = []

    def start(name: str, *settings: str) -> tuple[subprocess.Popen[str], Path]:
        command = [
            sys.executable,
            "-m",
            "simulations.commands.cli",
            "run",
            str(ROOT / "configs/digits.yaml"),
        ]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        small = ["rounds=1", "data.clients=4", "evaluation.adapters=false", f"strategy.name={name}"]
        process = subprocess.Popen(
            [*command, *small, "evaluation.local_baseline=false", "output=out", *settings],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        began.append(process)
        deadline = time.monotonic() + 240
        while not (found := list(tmp_path.glob("out/*/pid"))):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(process.communicate()[0])
            time.sleep(0.1)
        return process, found[0].parent

    yield start
    for process in began:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def holds(pid: int, needles: list[bytes]) -> list[bool]:
    """Which of these are in the memory of a process."""
    found, longest = [False] * len(needles), max(map(len, needles))
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for start, end in in_use(pid):
            for at in range(start, end, 1 << 24):
                memory.seek(at)
                data = memory.read(min(end - at, (1 << 24) + longest))
                found = [f or n in data for f, n in zip(found, needles, strict=True)]
    return found


def in_use(pid: int) -> list[tuple[int, int]]:
    """The ranges of a process's memory that it can read and of which something is there."""
    ranges, readable = [], False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            start, end = (int(number, 16) for number in name.split("-"))
            readable = values[0].startswith("r") and "[v" not in line  # the kernel's own is not
        elif name == "Rss:" and readable and values[0] != "0":
            ranges.append((start, end))
    return ranges


def secret(key: Path) -> list[bytes]:
    """Pieces of the secret key, as its file holds it and as SEAL does."""
    blob = unframe(MAGIC, key.read_bytes())[1][0]
    lattice = Lattice(Parameters.from_json(show(key)["parameters"]))
    loaded = lattice.seal.SecretKey()
    with Channel() as channel:
        loaded.load(lattice.context, channel.write(blob))
        words = 8 * len(lattice.parameters.bits) * lattice.parameters.degree
        inside = channel.content(loaded, 48 + 24 + words)
    return [data[at : at + 32] for data in (blob, inside) for at in (2000, 5000, 8000)]


MARK = torch.rand(4, generator=torch.Generator().manual_seed(77)).numpy().tobytes()


@pytest.mark.slow
def test_without_encryption_the_server_holds_updates(start) -> None:  # type: ignore[no-untyped-def]
    process, folder = start("marked_server:Waits")
    server, _ = (folder / "pid").read_text().split()
    assert holds(int(server), [MARK]) == [True]
    (folder / "go").touch()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Waits", "WaitsAtOnce"])
def test_with_encryption_it_holds_neither_updates_nor_the_key(  # type: ignore[no-untyped-def]
    start, tmp_path: Path, name: str
) -> None:
    process, folder = start(
        f"marked_server:{name}", "encryption.enabled=true", "encryption.scheme=bfv"
    )
    (key,) = tmp_path.glob(f"tmp/fedpers-keys-*/*/{CLIENT_FILE}")
    needles = secret(key)
    server, cwd = (folder / "pid").read_text().split()
    assert not any(holds(int(server), [MARK, *needles]))
    # The nodes' processes hold it, so that the search would find it.
    mark = psutil.Process(int(server)).environ()[guard.MARK]
    nodes = [p.pid for p in guard.marked(mark) if "ClientAppActor" in "".join(p.cmdline())]
    assert nodes and any(any(holds(pid, needles)) for pid in nodes)
    places = [tmp_path, Path(cwd).parent]
    lying = [p for place in places for p in place.rglob("*") if p.is_file() and p != key]
    assert any(path.name == "rounds.jsonl" for path in lying)
    assert len(lying) > 50  # the run's folder, the bundle, Flower's and Ray's logs
    assert not any(piece in path.read_bytes() for path in lying for piece in needles)
    (folder / "go").touch()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert not any(piece.hex() in output for piece in needles)
    assert not list(tmp_path.glob("tmp/fedpers-keys-*/*"))
