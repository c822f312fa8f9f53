"""A launch's own network: who is outside of it reaches none of its ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from fedpers.config import Config, Simulation, load_config
from simulations.backends import network
from simulations.backends.flower import private_space
from simulations.backends.launcher import _shares, launch

TOYS = Path(__file__).parents[2] / "tools"
NOBODY = 65534
SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    server.accept()
"""


def as_another_user(work: Callable[[], int]) -> int:
    """What ``work`` makes of its answer in 0..255, in a process of nobody's if root may ask for
    one: a process of one's own might be let in for other reasons."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reached(host: str, port: int) -> bool:
    """Whether another user of this machine gets a connection."""

    def connect() -> int:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            return 0
        return 1

    return as_another_user(connect) == 1


@pytest.fixture
def own_network() -> Iterator[list[str]]:
    try:
        holder, within = network.hold(dict(os.environ), "/")
    except network.NoNetwork as reason:
        pytest.skip(f"no network namespaces here: {reason}")
    yield within
    assert holder.stdin is not None
    holder.stdin.close()
    assert holder.wait(10) == 0


def test_what_listens_inside_is_not_reached_from_outside(own_network: list[str]) -> None:
    for within, expected in (([], True), (own_network, False)):
        command = [*within, sys.executable, "-c", SERVER]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            assert reached("127.0.0.1", port) is expected
            knock = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
            subprocess.run([*within, sys.executable, "-c", knock], check=True)
            server.kill()


def test_the_address_of_the_machines_name_is_inside_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    try:
        holder, within = network.hold(dict(os.environ), "/")
    except network.NoNetwork as reason:
        pytest.skip(f"no network namespaces here: {reason}")
    bind = "import socket; socket.create_server(('192.0.2.7', 0))"
    subprocess.run([*within, sys.executable, "-c", bind], check=True)
    holder.communicate(timeout=10)


def test_where_there_is_none_the_space_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.shutil, "which", lambda name: None)
    with private_space("") as space:
        assert space.within == []
        assert space.shares.startswith("this system gives no other (util-linux's unshare")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unshare", "unshare: unshare failed: Operation not permitted"),
        ("nsenter", "nsenter: reassociate to namespace failed"),
    ],
)
def test_a_system_that_gives_none_or_lets_nobody_in(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_network: list[str]
) -> None:
    (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(network.NoNetwork, match=f"^{said}$"):
        network.hold(dict(os.environ), "/")
    assert {child.pid for child in psutil.Process().children()} == before


def test_who_needs_the_machines_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for setting in ("model.name=mlp", f"model.name=hf:{tmp_path}", "model.name=sentence:minilm"):
        assert _shares(load_config(None, [setting])) == ""
    for setting in ("data.name=hub:mnist", "model.name=hf:bert", "simulation.network=shared"):
        assert _shares(load_config(None, [setting]))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert "cluster" in _shares(Config())


# -- every listener of a running simulation ------------------------------------------------------


def listeners(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Where these processes listen, in whatever network they are: addresses and ports."""
    found = set()
    for process in processes:
        folder = Path("/proc") / str(process.pid)
        try:
            own = {os.readlink(fd) for fd in (folder / "fd").iterdir()}
        except OSError:  # it has ended
            continue
        for table in ("tcp", "tcp6"):
            for line in (folder / "net" / table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == "0A" and f"socket:[{inode}]" in own:
                    address, port = local.split(":")
                    found.add((_ip(address), int(port, 16)))
    return found


def _ip(address: str) -> str:
    words = [bytes.fromhex(address[k : k + 8])[::-1] for k in range(0, len(address), 8)]
    raw = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def run_a_task_of_ones_own(port: int) -> bool:
    """Whether a SuperLink's Control API answers another user; it runs what it is sent."""

    def ask() -> int:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as there:
            there.sendall(
                b"POST /v1/control/list-runs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"Content-Type: application/protobuf\r\nContent-Length: 0\r\n\r\n"
            )
            return int(there.recv(100).startswith(b"HTTP/1.1 200"))

    return as_another_user(ask) == 1


@pytest.mark.slow
@pytest.mark.parametrize("where", ["own", "shared"])
def test_no_listener_of_a_run_is_reached(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the machine's network the same eyes see the doors, and the same hands open one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TOY", str(tmp_path / "go on"))
    monkeypatch.chdir(TOYS)
    found: set[tuple[str, int]] = set()
    reach: set[int] = set()
    lines: list[str] = []
    taken: list[int] = []

    def show(line: str) -> None:
        lines.append(line)
        if line.startswith("answers"):  # both nodes are there
            found.update(listeners(psutil.Process().children(recursive=True)))
            hosts = {"127.0.0.1", "::1"} | {ip for ip, _ in found if ip not in ("0.0.0.0", "::")}
            reach.update(p for _, p in found for host in hosts if reached(host, p))
            taken.extend(port for port in reach if run_a_task_of_ones_own(port))
            (tmp_path / "go on").touch()

    apps = {"serverapp": "toy_server:app", "clientapp": "toy_client:app"}
    config = Config(simulation=Simulation(network=where))
    launch(config, tmp_path / "run", **apps, show=show)  # type: ignore[arg-type]
    assert lines[-1] == "answers [40, 41]"
    assert len(found) >= 5 and any(ip not in ("127.0.0.1", "::1") for ip, _ in found)
    if where == "shared":
        assert lines[0].startswith("network: the machine's, by simulation.network: Flower's")
        assert reach == {port for _, port in found} and len(taken) == 1
    elif lines[0].startswith("network"):
        pytest.skip(lines[0])
    else:
        assert not reach and not taken
