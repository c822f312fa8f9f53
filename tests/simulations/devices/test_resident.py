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

import psutil
import pytest
from residents import start_resident, start_stock, submit

from fedpers.config import load_config
from fedpers.errors import RunError
from simulations.devices.rehearsal import Files, Rehearsal, make_files, rehearsal

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
    start_stock(rehearsed, stock, files.data[stock])
    start_resident(rehearsed, resident, files.data[resident])
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


# -- a node that goes on -------------------------------------------------------------------------


def test_a_superlink_that_is_stopped_and_started_again(
    rehearsed: Rehearsal, tmp_path: Path
) -> None:
    files = deployed(rehearsed, "rounds=1", "strategy.min_clients=1", "privacy.enabled=false")
    client = next(iter(files.data))
    node = start_resident(rehearsed, client, files.data[client])
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
    start_resident(rehearsed, client, files.data[client])
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
    node = start_resident(rehearsed, client, files.data[client])
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
    assert "train: answered" not in said(rehearsed, client)
    # What was charged stays charged, and nothing is left half written.
    assert ledger.read_text() == charged and json.loads(charged)
    hidden = {path.name for path in state.rglob(".*")}
    assert all(name.endswith(".lock") for name in hidden), hidden
