"""The command line in its own processes, a proxy that keeps what passes, small pictures."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedpers.config import Config, load_config
from simulations.devices.certificates import Certificates

ROOT = Path(__file__).parents[2]
SMALL = [
    *("rounds=6", "data.clients=5", "model.pretrain.epochs=2", "evaluation.every=2"),
    *("evaluation.local_baseline=false", "evaluation.outside=20", "evaluation.adapters=false"),
]
# The command line in a process that is killed when round 4 is over but for its checkpoint.
KILLED = """
import os, signal
import strategies.run as rounds

save = rounds.save_checkpoint

def die(folder, server_round, state):
    if server_round == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(folder, server_round, state)

rounds.save_checkpoint = die
from simulations.commands.cli import main
main()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start("out", "rounds=3")``: a small run on digits; ``killed=True``: until round 4."""
    started = []
    (tmp_path / "tmp").mkdir()

    def start(output: str, *settings: str, killed: bool = False) -> subprocess.Popen[str]:
        program = ["-c", KILLED] if killed else ["-m", "simulations.commands.cli"]
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


class Proxy:
    """Passes bytes between whoever connects and a port, and keeps them.

    Args:
        target: the port.
        tls: the server's certificates, to open what comes, and seal it again: what is kept is then
            what is inside.
    """

    def __init__(self, target: int, tls: Certificates | None = None) -> None:
        self.target, self.tls, self.kept = target, tls, bytearray()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.server.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError):
            far = socket.create_connection(("127.0.0.1", self.target))
            if self.tls is not None:
                inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                inside.load_cert_chain(self.tls.server, self.tls.server_key)
                near = inside.wrap_socket(near, server_side=True)
                outside = ssl.create_default_context(cafile=str(self.tls.ca))
                far = outside.wrap_socket(far, server_hostname="127.0.0.1")
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.kept += data
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def proxy() -> type[Proxy]:
    return Proxy


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Config]:
    """Settings of two clients with small pictures of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 3
    x = rng.uniform(-1, 1, (3, 1, 5, 5))[y] + 0.3 * rng.standard_normal((80, 1, 5, 5))
    np.savez(tmp_path / "x.npz", x=x.clip(-1, 1).astype(np.float32), y=y)
    own = [
        *("data.name=npz", f"data.path={tmp_path / 'x.npz'}", "data.clients=2"),
        *("data.partition.name=iid", "data.public_fraction=0", "model.name=mlp"),
        *("model.lora=null", "strategy.name=fedavg", "rounds=1"),
    ]
    (tmp_path / "x.yaml").write_text("")
    return lambda *overrides: load_config(tmp_path / "x.yaml", [*own, *overrides])
