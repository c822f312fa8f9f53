"""Devices, with a real SuperLink and real SuperNodes on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest

from clients.node.store import ClientStore
from fedpers.config import Config, load_config
from fedpers.privacy import Ledger
from simulations.backends import guard
from simulations.devices.certificates import make_certificates, make_node_key
from simulations.devices.demo import demo
from simulations.devices.gateway import BRINGS, has_nginx
from simulations.devices.rehearsal import Files, Rehearsal, make_files, rehearsal

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[3] / "configs" / "devices.yaml"
PATIENCE = 420.0  # seconds, for what is slow on a busy machine


class Processes:
    """The processes of a rehearsal, as far as they were seen."""

    def __init__(self) -> None:
        self.before = set(psutil.Process().children(recursive=True))
        self.seen: set[psutil.Process] = set()

    def look(self) -> None:
        self.seen |= set(psutil.Process().children(recursive=True)) - self.before

    def check_gone(self) -> None:
        assert len(self.seen) >= 5
        _, alive = psutil.wait_procs(list(self.seen), timeout=10)
        assert [one.cmdline() for one in alive if guard._runs(one)] == []


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


# -- the rehearsal that the README tells of ------------------------------------------------------


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(tempfile.mkdtemp())  # short, for sockets
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    processes, lines = Processes(), list[str]()

    def show(line: str) -> None:
        lines.append(line)
        processes.look()
        assert [path.name[:8] for path in own.iterdir()] == ["fedpers-"]

    demo(load_config(CONFIG, ["evaluation.diagnostics=true"]), tmp_path / "run", show)
    processes.check_gone()
    own.rmdir()  # nothing is left in it
    if has_nginx():
        assert lines[0].startswith("gateway on port") and lines[0].endswith("3 devices")
        tried = lines[lines.index(next(line for line in lines if line.startswith("who "))) + 1 : -1]
        assert len(tried) == 18 and sum("403" in line for line in tried) == 14
        assert sum("refused by name" in line for line in tried) == 1
        assert sum("passed on (" in line for line in tried) == 1
    else:
        assert BRINGS in lines[0] and "SuperLink on port" in lines[1]
    assert lines[-1].startswith("the rehearsal took ")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["clients"] == 3 and report["scored"]["clients"] == 3
    assert report["encryption"]["enabled"] and report["encryption"]["security_bits"] >= 128
    assert report["privacy"]["enabled"] and 0 < report["privacy"]["epsilon_max"] <= 8
    assert set(report["privacy"]["per_client"]) == {f"device-{k}" for k in range(3)}
    assert report["accuracy"]["personal"]["mean"] > 0.5
    # The server has seen no plain parts, and kept none.
    assert not (tmp_path / "run" / "global.safetensors").exists()
    assert [line["answered"] for line in read(tmp_path / "run", "rounds")] == [3, 3, 3]


# -- a device that loses power in the middle of a round -------------------------------------------


@pytest.fixture
def rehearsed(tmp_path: Path) -> Iterator[Rehearsal]:
    with rehearsal() as found:
        yield found


class Running:
    """A run in the background."""

    def __init__(
        self, rehearsed: Rehearsal, config: Config, folder: Path, *, resume: bool = False
    ) -> None:
        self.lines: list[str] = []
        self.error: BaseException | None = None
        self.seen = threading.Condition()

        def show(line: str) -> None:
            with self.seen:
                self.lines.append(line)
                self.seen.notify_all()

        def work() -> None:
            try:
                rehearsed.run(config, folder, show, resume=resume)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def wait(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Look again and again until something on disk is so."""
        for _ in range(int(PATIENCE / 0.05)):
            if condition():
                return
            assert self.thread.is_alive(), (self.error, self.lines)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        pytest.fail(f"waited in vain: {self.lines}")


def deployed(rehearsed: Rehearsal, *overrides: str) -> tuple[Config, Files]:
    """Private devices that seal nothing, known to the SuperLink and started."""
    plain = ("encryption.enabled=false", "round_timeout=240", "evaluation.local_baseline=false")
    scored = ("evaluation.adapters=false", "evaluation.diagnostics=true")
    config = load_config(CONFIG, [*plain, *scored, *overrides])
    files = make_files(config, rehearsed.space.folder)
    for client, data in files.data.items():
        rehearsed.register(client)
        rehearsed.start_node(client, data, None)
    return config, files


def test_a_device_that_is_killed_in_a_round_takes_part_again(
    rehearsed: Rehearsal, tmp_path: Path
) -> None:
    steps, victim = 3, "device-1"
    config, files = deployed(rehearsed, f"privacy.steps={steps}", "evaluation.every=1")
    running = Running(rehearsed, files.config, tmp_path / "run")
    state = rehearsed.space.folder / f"state-{victim}"
    ledger = state / "ledgers" / f"{victim}.json"

    def rounds_charged() -> int:
        if not ledger.exists():
            return 0
        return sum(release.steps for release in Ledger(ledger).releases) // steps

    # The second round is paid for, just before it is trained: the power goes.
    running.wait(lambda: rounds_charged() == 2, rehearsed.nodes[victim])
    stores = state / "runs" / "run" / "state"
    kill_all(rehearsed.nodes[victim])
    kept = ClientStore(stores, victim).load_before("personal", 2).digest()
    assert ClientStore(stores, victim).load_before("personal", 2)
    # Supervised: a node that was killed is refused until its death is noticed.
    starts = 0
    while running.thread.is_alive():
        node = rehearsed.nodes[victim]
        if node.poll() is not None:
            starts += 1
            assert starts < 100
            rehearsed.start_node(victim, files.data[victim], None)
        with suppress(subprocess.TimeoutExpired):
            rehearsed.nodes[victim].wait(1)
    assert running.error is None, (running.error, running.lines)

    rounds = read(tmp_path / "run", "rounds")
    assert [line["answered"] for line in rounds] == [3, 2, 3], running.lines
    # Two of at least three answered: nothing of the round is used.
    assert [line.get("skipped", 0) for line in rounds] == [0, 1, 0]
    assert set(rounds[1]["failed"]) == {victim} and not rounds[2]["failed"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    # Each ledger has every round that was trained, and the report says what it holds.
    for client in files.data:
        folder = rehearsed.space.folder / f"state-{client}" / "ledgers"
        own = Ledger(folder / f"{client}.json")
        assert sum(release.steps for release in own.releases) == 3 * steps, client
        epsilon = report["privacy"]["per_client"][client]
        assert epsilon == pytest.approx(own.epsilon(config.privacy.delta))
        assert epsilon <= config.privacy.epsilon
    # It went on from where it was.
    before = {path.name for path in ClientStore(stores, victim).folder.glob("personal-*")}
    assert "personal-3.safetensors" in before
    if before == {"personal-1.safetensors", "personal-3.safetensors"}:
        assert ClientStore(stores, victim).load_round("personal", 1).digest() == kept
    scored = {
        line["round"]: line["test"]["correct"]["personal"] / line["test"]["n"]
        for line in read(tmp_path / "run", "clients")
        if line["client"] == victim and "test" in line
    }
    assert scored[3] >= scored[1] - 0.1, scored
    print(scored, starts, [line["seconds"] for line in rounds])


def test_a_server_that_is_killed_in_a_round_goes_on_with_its_run(
    rehearsed: Rehearsal, tmp_path: Path
) -> None:
    steps = 3
    config, files = deployed(rehearsed, f"privacy.steps={steps}")
    ledgers = [
        rehearsed.space.folder / f"state-{client}" / "ledgers" / f"{client}.json"
        for client in files.data
    ]

    def steps_charged() -> list[int]:
        return [
            sum(release.steps for release in Ledger(ledger).releases) if ledger.exists() else 0
            for ledger in ledgers
        ]

    running = Running(rehearsed, files.config, tmp_path / "run")
    running.wait(lambda: max(steps_charged()) == 2 * steps, rehearsed.superlink)
    killed = [
        process
        for process in psutil.Process(rehearsed.superlink.pid).children(recursive=True)
        if any("serverapp" in word for word in process.cmdline())
    ]
    for process in killed:
        process.kill()
    running.thread.join(PATIENCE)
    assert killed and running.error is not None, (killed, running.lines)
    assert [line["round"] for line in read(tmp_path / "run", "rounds")] == [1]

    resumed = Running(rehearsed, files.config, tmp_path / "run", resume=True)
    resumed.thread.join(PATIENCE)
    assert resumed.error is None, (resumed.error, resumed.lines)
    rounds = read(tmp_path / "run", "rounds")
    assert [(line["round"], line["answered"]) for line in rounds] == [(1, 3), (2, 3), (3, 3)]
    # Nobody paid twice for the round that was asked for twice.
    assert steps_charged() == [3 * steps] * 3
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 < report["privacy"]["epsilon_max"] <= config.privacy.epsilon


def kill_all(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a SuperNode and all that it started."""
    processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
    node.wait()


# -- who is refused, and what crosses the wire ----------------------------------------------------

MARKER = np.array([1.5, -2.25, 3.125, -4.0625, 5.5, -6.75, 7.875, -8.9375], dtype=np.float32)
PLUGIN = f"""
import os
import torch
from clients.methods.fedavg import FedAvg
from fedpers.parts import Parts
from strategies.base import PersonalizedStrategy


class Marks(FedAvg):
    def upload(self, working):
        marker = torch.tensor({MARKER.tolist()})
        head = working["head"]
        vector = marker.repeat(head.layout.size // 8 + 1)[: head.layout.size]
        vector[-1] = float(os.getpid())  # Flower sends what is the same at two nodes only once
        return Parts({{**super().upload(working), "head": head.like(vector)}})


class Marked(PersonalizedStrategy):
    algorithm = "marked_for_tests:Marks"
"""


class Wire(NamedTuple):
    """What a run over two proxies left."""

    sealed: bytes
    inside: bytes
    logs: dict[str, str]
    codes: dict[str, int | None]
    rounds: list[dict[str, Any]]


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory, proxy: Any) -> Wire:
    """A run of two devices, one of them behind proxies, while two others try to get in."""
    folder = tmp_path_factory.mktemp("wire")
    (folder / "marked_for_tests.py").write_text(PLUGIN)
    (folder / "other").mkdir()
    config = load_config(
        CONFIG,
        [
            *("encryption.enabled=false", "privacy.enabled=false", "rounds=1"),
            *("strategy.name=marked_for_tests:Marked", "strategy.params={}"),
            *("strategy.min_clients=2", "evaluation.local_baseline=false"),
            *("evaluation.adapters=false", "round_timeout=240"),
        ],
    )
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.syspath_prepend(str(folder))
        with rehearsal() as found:
            files = make_files(config, found.space.folder)
            inside = proxy(found.port, found.certificates)
            outside = proxy(inside.port)
            (first, one), (second, two) = files.data.items()
            for client in (first, second, "misled"):
                found.register(client)
            make_node_key(found.space.folder, "node-stranger")
            found.start_node("stranger", one, None)
            found.start_node("misled", one, None, trusts=make_certificates(folder / "other").ca)
            found.start_node(first, one, None)
            found.start_node(second, two, None, port=outside.port)
            found.run(files.config, folder / "run", lambda line: None)
            logs = {client: found.log_of(client).read_text() for client in found.nodes}
            codes = {client: node.poll() for client, node in found.nodes.items()}
    rounds = read(folder / "run", "rounds")
    return Wire(bytes(outside.kept), bytes(inside.kept), logs, codes, rounds)


def test_the_run_goes_on_with_those_who_may_take_part(wire: Wire) -> None:
    assert [(line["answered"], line["failed"]) for line in wire.rounds] == [(2, {})]


def test_a_node_with_an_unregistered_key_is_refused(wire: Wire) -> None:
    assert wire.codes["stranger"] == 1 and "Exit Code: 305" in wire.logs["stranger"]


def test_a_node_that_trusts_another_authority_does_not_speak(wire: Wire) -> None:
    assert wire.codes["misled"] == 1
    assert "certificate verify failed" in wire.logs["misled"]


def test_no_parameter_crosses_the_wire_in_the_clear(wire: Wire) -> None:
    marker = MARKER.tobytes()
    assert len(marker) == 32
    # What is inside holds it, many times: the recording is of the right connection.
    assert wire.inside.count(marker) > 50
    assert len(wire.sealed) >= len(wire.inside) > 10_000
    assert marker not in wire.sealed and marker[:8] not in wire.sealed
