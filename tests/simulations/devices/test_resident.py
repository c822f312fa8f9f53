"""Resident nodes at a real SuperLink on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from owner import allowing, permitted
from submitted import submit

from fedpers.config import load_config
from fedpers.errors import RunError
from fedpers.failures import POLICY
from simulations.devices.rehearsal import Files, Rehearsal, make_files, rehearsal
from strategies.base import find_strategy

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[3] / "configs" / "devices.yaml"
PLAIN = [
    *("encryption.enabled=false", "round_timeout=240", "evaluation.local_baseline=false"),
    *("evaluation.adapters=false", "evaluation.diagnostics=true"),
]
PATIENCE = 120.0  # seconds, for what is slow on a busy machine


@pytest.fixture
def rehearsed() -> Iterator[Rehearsal]:
    with rehearsal() as found:
        yield found


def deployed(rehearsed: Rehearsal, *overrides: str) -> Files:
    """Files of devices whose keys the SuperLink knows."""
    files = make_files(load_config(CONFIG, [*PLAIN, *overrides]), rehearsed.space.folder)
    for client in files.data:
        rehearsed.register(client)
    return files


def wait(condition: Callable[[], bool], what: str) -> None:
    for _ in range(int(PATIENCE / 0.1)):
        if condition():
            return
        time.sleep(0.1)  # of other processes there is no event
    pytest.fail(f"waited in vain for {what}")


def said(rehearsed: Rehearsal, client: str) -> str:
    path = rehearsed.log_of(client)
    return path.read_text() if path.exists() else ""


# -- an app that is sent -------------------------------------------------------------------------

HOSTILE = """
import os

with open({mark!r}, "a") as file:
    file.write(os.path.basename(os.environ["FLWR_HOME"]) + "\\n")

from clients.node.client_app import app
"""


def test_an_app_that_is_sent_runs_on_a_stock_node_and_not_on_a_resident_one(
    rehearsed: Rehearsal, tmp_path: Path
) -> None:
    files = deployed(rehearsed, "strategy.min_clients=2", "rounds=2")
    mark = tmp_path / "mark"
    (tmp_path / "hostile_for_tests.py").write_text(HOSTILE.format(mark=str(mark)))
    resident, stock = files.data
    rehearsed.start_node(stock, files.data[stock], None)
    rehearsed.start_device(resident, files.data[resident], None)
    config = rehearsed.allow(files.config, tmp_path / "run")
    app = "hostile_for_tests:app"
    submit(rehearsed, config, tmp_path / "run", search=tmp_path, clientapp=app)
    ran = mark.read_text().split()
    print(f"the app that was sent ran {len(ran)} times on the stock node, 0 on the resident one")
    assert len(ran) >= 3 and set(ran) == {f"home-{stock}"}
    rounds = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["answered"] for line in rounds] == [2, 2]
    # Neither it nor the run's settings were fetched, and nothing listens.
    fetched = (rehearsed.space.path("superlink.log")).read_text()
    assert fetched.count("[Fleet.GetFab]") == 1  # by the stock node
    node = psutil.Process(rehearsed.nodes[resident].pid)
    assert [c for c in node.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    assert node.children() == []


# -- a server that wants more than the owner allows ----------------------------------------------

SERVER = """
import json
import time
from flwr.app import Message
from flwr.serverapp import ServerApp
from fedpers.records import pack, unpack

app = ServerApp()


@app.main()
def main(grid, context):
    with open({asked!r}) as file:
        asked = json.load(file)
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    said = {{}}
    for name, (kind, body) in asked.items():
        replies = list(grid.send_and_receive([Message(pack([], body), nodes[0], kind)], timeout=90))
        told = "nothing"
        for reply in replies:
            told = reply.error.reason if reply.has_error() else unpack(reply.content)[1]
        said[name] = told
    with open({said!r}, "w") as file:
        json.dump(said, file)
"""
WISHES = {
    "privacy off": ("privacy.enabled=false", "privacy.enabled: got false"),
    "epsilon times 50": ("privacy.epsilon=400", "privacy.epsilon: got 400, takes at most 8"),
    "another unit": ("privacy.unit=client", "privacy.unit: got 'client', takes 'example'"),
    "another delta": ("privacy.delta=0.02", "privacy.delta: got 0.02, takes at most 0.001"),
    "test noise": ("privacy.deterministic_for_tests=true", "privacy.deterministic_for_tests"),
    "a cohort of one": ("strategy.min_clients=1", "strategy.min_clients: got 1"),
    "diagnostics": ("evaluation.diagnostics=true", "evaluation.diagnostics: got true"),
    "10,000 rounds": ("rounds=10000", "rounds: got 10000, takes at most 3"),
    "a plug-in": ("strategy.name=os:abort", "strategy.name: got 'os:abort'"),
    "another channel": ("encryption.enabled=true", "channel: got 'sealed', takes plain"),
}


def test_what_hostile_servers_get_through_a_superlink(rehearsed: Rehearsal, tmp_path: Path) -> None:
    bare = ("evaluation.diagnostics=false", "model.pretrain.task=none", "model.standardise=false")
    files = deployed(rehearsed, *bare)
    client = next(iter(files.data))
    config, algorithm, run = files.config, "perada", "5" * 32

    def asks(override: str | None = None, expires: float | None = None) -> dict[str, Any]:
        wished = load_config(CONFIG, [*PLAIN, *bare, *([override] if override else ())])
        by = find_strategy(config).param_names()
        return {
            **{"settings": wished.to_json(), "algorithm": algorithm, "server_params": by},
            **{"run_folder": "/runs/a", "base": None, "schema": None, "round": 1},
            **{"clients": [client], "rows": {client: 0}},
            "permit": permitted(wished, algorithm, by, run=run, expires=expires),
        }

    allowing(rehearsed.policy_of(client), config, algorithm, bytes=60_000)
    asked: dict[str, Any] = {"honest": ("query.roster", asks())}
    asked |= {name: ("train", asks(override)) for name, (override, _) in WISHES.items()}
    foreign = permitted(config, algorithm, key=Ed25519PrivateKey.generate())
    more = {
        "a foreign operator": ("operators: got", asks() | {"permit": foreign}),
        "an expired permit": ("permit: it expired", asks(expires=1.0)),
        "a replayed permit": ("permit: it is that of the run", asks() | {"run_folder": "/runs/b"}),
        "too large": ("bytes: got more than its owner takes", asks() | {"x": "x" * 100_000}),
    }
    asked |= {name: ("train", body) for name, (_, body) in more.items()}
    paths = {name: str(tmp_path / f"{name}.json") for name in ("asked", "said")}
    Path(paths["asked"]).write_text(json.dumps(asked))
    (tmp_path / "hostile_server.py").write_text(SERVER.format(**paths))
    rehearsed.start_device(client, files.data[client], None)
    app = "hostile_server:app"
    submit(rehearsed, config, tmp_path / "run", search=tmp_path, serverapp=app)

    said = json.loads(Path(paths["said"]).read_text())
    assert said.pop("honest")["clients"] == [client]
    assert said == dict.fromkeys(said, POLICY)
    state = rehearsed.space.folder / f"state-{client}"
    first, *log = (state / "policy.log").read_text().splitlines()
    assert "taken up: run 'a'" in first
    whys = [why for _, why in WISHES.values()] + [why for why, _ in more.values()]
    assert len(log) == len(whys) == 14
    for why, line in zip(whys, log, strict=True):
        assert f"train refused: {why}" in line, line
    assert not (state / "ledgers").exists()


# -- a node that goes on -------------------------------------------------------------------------


def test_a_superlink_that_is_stopped_and_started_again(
    rehearsed: Rehearsal, tmp_path: Path
) -> None:
    files = deployed(rehearsed, "rounds=1", "strategy.min_clients=1", "privacy.enabled=false")
    client = next(iter(files.data))
    node = rehearsed.start_device(client, files.data[client], None)
    wait(lambda: "joined as node" in said(rehearsed, client), "the node")
    rehearsed.run(files.config, tmp_path / "one", lambda line: None)

    command = psutil.Process(rehearsed.superlink.pid).cmdline()
    stop(rehearsed.superlink)
    wait(lambda: "the SuperLink is gone" in said(rehearsed, client), "the node to notice")
    assert node.poll() is None
    with rehearsed.space.path("superlink.log").open("ab") as log:
        again = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=rehearsed.space.env,
            cwd=rehearsed.space.path("cwd"),
            start_new_session=True,
        )
    rehearsed.space.processes.append(again)
    rehearsed.superlink = again
    wait(lambda: "the SuperLink is there again" in said(rehearsed, client), "the node to be back")
    rehearsed.run(files.config, tmp_path / "two", lambda line: None)
    rounds = (tmp_path / "two" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["answered"] for line in rounds] == [1]

    # And it stops when it is told to; a new one joins at once, as it said goodbye.
    node.terminate()
    assert node.wait(15) == 0 and said(rehearsed, client).endswith("stopped\n")
    began = time.monotonic()
    rehearsed.start_device(client, files.data[client], None)
    wait(lambda: said(rehearsed, client).count("joined as node") == 2, "the second node")
    assert "not joined yet" not in said(rehearsed, client)
    print(f"joined again after {time.monotonic() - began:.1f} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to a SuperLink and all that it started."""
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everybody:
        one.terminate()
    _, alive = psutil.wait_procs(everybody, timeout=15)
    for one in alive:
        one.kill()
    process.wait()


def test_sigterm_in_the_middle_of_a_training(rehearsed: Rehearsal, tmp_path: Path) -> None:
    files = deployed(rehearsed, "rounds=1", "strategy.min_clients=1", "privacy.steps=1000000")
    client = next(iter(files.data))
    node = rehearsed.start_device(client, files.data[client], None)
    config, folder = rehearsed.allow(files.config, tmp_path / "run"), tmp_path / "run"

    def run() -> None:
        with suppress(RunError):  # nobody answers
            submit(rehearsed, config, folder, search=tmp_path)

    threading.Thread(target=run, daemon=True).start()
    state = rehearsed.space.folder / f"state-{client}"
    ledger = state / "ledgers" / f"{client}.json"
    wait(ledger.exists, "the training to begin")
    charged = ledger.read_text()
    began = time.monotonic()
    node.send_signal(signal.SIGTERM)
    assert node.wait(15) == 0
    print(f"stopped {time.monotonic() - began:.1f} s after SIGTERM in a training")
    assert said(rehearsed, client).endswith("stopped\n")
    assert "train: " not in said(rehearsed, client)
    # What was charged stays charged, and nothing is left half written.
    assert ledger.read_text() == charged and json.loads(charged)
    hidden = {path.name for path in state.rglob(".*")}
    assert all(name.endswith(".lock") for name in hidden), hidden
