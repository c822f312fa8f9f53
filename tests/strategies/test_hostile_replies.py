"""What one node may answer to spoil everybody's run: each answer costs its sender alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from hostile import (
    DEEP,
    ESCAPE,
    HONEST,
    HOSTILE,
    LONG,
    REPORT,
    TRAINED,
    HostileGrid,
    with_fields,
    with_text,
)

from fedpers.config import load_config
from fedpers.records import pack
from simulations.backends.serial import run_serial
from strategies.exchange import send_and_receive

TOOL = Path(hostile.__file__)


class Spoiled:
    """A grid one of whose nodes is hostile.

    Args:
        inner: the grid.
        spoil: what that node makes of its answers.
    """

    def __init__(self, inner: Any, spoil: Callable[[Message, Message], Message]) -> None:
        self.inner, self.spoil, self.sent = inner, spoil, dict[str, Message]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def push_messages(self, messages: Any) -> Any:
        ids = list(self.inner.push_messages(some := list(messages)))
        self.sent |= dict(zip(ids, some, strict=True))
        return ids

    def pull_messages(self, ids: Any) -> list[Message]:
        return [self._spoiled(reply) for reply in self.inner.pull_messages(ids)]

    def _spoiled(self, reply: Message) -> Message:
        if reply.metadata.src_node_id != self.inner.node_id(1):
            return reply
        message = self.sent[reply.metadata.reply_to_message_id]
        made = self.spoil(reply, message)
        for name in ("_src_node_id", "_message_id"):
            made.metadata.__dict__[name] = reply.metadata.__dict__[name]
        return made


@pytest.mark.parametrize("name", TRAINED)
def test_an_answer_to_training_costs_its_sender_alone(
    serve: Callable[..., Any], log: pytest.LogCaptureFixture, name: str
) -> None:
    server = serve("fedavg", hosts=[[HONEST], [HOSTILE]])
    grid, began = Spoiled(server.grid, TRAINED[name]), time.monotonic()
    messages = list(server.run.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    _, metrics = server.run.aggregate_train(1, send_and_receive(grid, messages, 5))  # type: ignore[arg-type]
    assert metrics is not None and metrics["answered"] == 1, name
    assert list(server.run.round.reports) == [HONEST]
    assert list(server.run.round.answers.failures) == [HOSTILE]
    values = [part.vector for part in server.strategy.parts.values()]
    assert all(bool((vector == 1).all()) for vector in values)  # as the honest one sent
    assert time.monotonic() - began < 5
    for text in (*server.run.round.answers.failures.values(), log.text.replace("\n", "")):
        assert text.isprintable(), name
    assert len(server.run.round.answers.failures[HOSTILE]) < 500


@pytest.mark.parametrize(
    "fields",
    [
        {"spent": {HONEST: {"epsilon": 1.0}}},
        {"spent": [HONEST]},
        {"reports": {HONEST: {"examples": 10**9, "loss": 0.0}, HOSTILE: REPORT}},
        {"failures": {HONEST: "gone"}},
        {"failures": [HONEST]},
        {"reports": {HOSTILE: {**REPORT, "noise": {"body": 1e308}}}},
        {"reports": {HOSTILE: {**REPORT, "epsilon": 1e308, "delta": 0, "sigma": "x", "mu": []}}},
        {"reports": {HOSTILE: {**REPORT, "loss": float("inf")}}},
        {"reports": {HOSTILE: {**REPORT, "loss": float("nan")}}},
        {"something": "else", ESCAPE: ESCAPE},
    ],
)
def test_what_is_said_of_others_or_of_nothing_counts_for_nothing(
    serve: Callable[..., Any], log: pytest.LogCaptureFixture, fields: dict[str, Any]
) -> None:
    server = serve("fedavg", hosts=[[HONEST], [HOSTILE]])
    grid = Spoiled(server.grid, with_fields(**fields))
    messages = list(server.run.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    _, metrics = server.run.aggregate_train(1, send_and_receive(grid, messages, 5))  # type: ignore[arg-type]
    assert metrics is not None and metrics["answered"] == 2 and metrics["loss"] == 0.5
    assert server.run.round.reports[HONEST]["examples"] == 1
    assert not server.run.budgets.spent & {HONEST}
    assert all(list(one) for one in server.run.budgets.spending.values())
    assert log.text.replace("\n", "").isprintable()


# -- whom it hosts -------------------------------------------------------------------------------

ROSTERS: dict[str, Callable[[Message, Message], Message]] = {
    "nodes without end": with_text('"nodes": 1', '"nodes": Infinity'),
    "10^9 nodes": with_text('"nodes": 1', '"nodes": 1000000000'),
    "no nodes": with_fields(nodes=0),
    "an id of 5,000 digits": with_fields(clients=[LONG]),
    "an id with escapes": with_fields(clients=[ESCAPE]),
    "an id without a name": with_fields(clients=[""]),
    "an id that is a number": with_fields(clients=[2]),
    "another's id": with_fields(clients=[HONEST]),
    "ids that are text": with_fields(clients="12"),
    "held out, and none": with_fields(held_out=7),
    "a channel that is a list": with_fields(channel=[]),
    "a refusal with escapes": with_fields(refused=ESCAPE * 1000),
    "a refusal that is a list": with_fields(refused=[1]),
    "it needs what is not there": with_fields(needs={}),
    "10^5 deep": with_fields(raw={"body": DEEP}),
}


@pytest.mark.parametrize("name", ROSTERS)
def test_an_answer_to_the_roster_costs_its_sender_alone(
    bind: Callable[..., Any], nodes: Any, log: pytest.LogCaptureFixture, name: str
) -> None:
    from strategies.roster import Roster

    grid = Spoiled(nodes([[HONEST], [HOSTILE]]), ROSTERS[name])
    roster, began = Roster(strangers=True), time.monotonic()
    roster.wait(grid, pack([], {}), least=1, timeout=3)  # type: ignore[arg-type]
    assert roster.clients == [HONEST] and time.monotonic() - began < 3
    assert log.text.replace("\n", "").isprintable()
    log.clear()
    roster.refresh(grid, pack([], {}), 3)  # type: ignore[arg-type]
    assert log.text == ""  # nor is it asked again and again


# -- a whole run ---------------------------------------------------------------------------------


def test_a_run_with_a_hostile_node_ends_well(digits: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*digits, "strategy.name=fedavg", "rounds=4"])
    run_serial(config, tmp_path / "run", make_grid=HostileGrid, show=lambda line: None)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["failed"] is None and report["rounds"] == 4
    for path in (tmp_path / "run").glob("*.json*"):
        text = path.read_text()
        assert "\x1b" not in text and "\\u001b" not in text and "Infinity" not in text, path


@pytest.mark.slow
def test_hostile_replies_do_not_cost_the_servers_memory(digits: list[str], tmp_path: Path) -> None:
    """Of a run that goes through all of them, and of one without."""

    def peak(name: str) -> int:
        command = [sys.executable, str(TOOL), str(tmp_path / name), name]
        settings = [*digits, "strategy.name=fedavg", f"rounds={len(TRAINED)}"]
        found = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr[-2000:]
        return int(found.stdout.splitlines()[-1])

    honest, attacked = peak("honest"), peak("attacked")
    assert attacked < 1.5 * honest, (honest, attacked)
