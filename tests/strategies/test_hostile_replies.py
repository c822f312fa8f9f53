"""What one node may answer to spoil everybody's run: each answer costs its sender alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedpers.parts import Part, Parts
from fedpers.records import pack
from simulations.backends.serial import SerialGrid, run_serial
from strategies.exchange import send_and_receive

HONEST, HOSTILE = "1", "2"
REPORT = {"examples": 2, "loss": 0.5}
DEEP = "[" * 10**5 + "]" * 10**5
LONG = "9" * 5_000
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\r\n"


def spoiled(reply: Message, message: Message, **fields: Any) -> Message:
    """The reply with other fields in its body; the text of ``body`` as it is."""
    content = reply.content
    config = dict(content.config_records["message"])
    raw = fields.pop("raw", {})
    body = {**json.loads(str(config["body"])), **fields}
    config |= {"body": json.dumps(body), **raw}
    record = RecordDict({"parts": content.array_records["parts"], "message": ConfigRecord(config)})
    return Message(record, reply_to=message)


def with_text(old: str, new: str) -> Callable[[Message, Message], Message]:
    """A spoiler that changes the body's text."""

    def spoil(reply: Message, message: Message) -> Message:
        text = str(reply.content.config_records["message"]["body"])
        assert old in text, text
        return spoiled(reply, message, raw={"body": text.replace(old, new)})

    return spoil


def with_fields(**fields: Any) -> Callable[[Message, Message], Message]:
    return lambda reply, message: spoiled(reply, message, **fields)


def with_report(**fields: Any) -> Callable[[Message, Message], Message]:
    return with_fields(reports={HOSTILE: {**REPORT, **fields}})


def with_update(value: Any) -> Callable[[Message, Message], Message]:
    """A spoiler that sends other arrays."""

    def spoil(reply: Message, message: Message) -> Message:
        content = reply.content
        arrays = {name: value(array) for name, array in content.array_records["parts"].items()}
        message_record = content.config_records["message"]
        record = RecordDict({"parts": ArrayRecord(arrays), "message": message_record})
        return Message(record, reply_to=message)

    return spoil


def garbage(array: Array) -> Array:
    return Array(array.dtype, array.shape, array.stype, b"\x00" * 40)


def huge(array: Array) -> Array:
    """Little data that claims to be much."""
    head = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1000000000000), }\n"
    return Array("float32", (1, 10**12), array.stype, head + len(text).to_bytes(2, "little") + text)


def full(value: float) -> Callable[[Array], Array]:
    return lambda array: Array(np.full(array.shape, value, dtype=np.float32))


LAYOUTS = json.dumps({"body": {"dtype": "float32", "shapes": [["w", [1]]] * 10**6}})
TRAINED: dict[str, Callable[[Message, Message], Message]] = {
    "a loss of 10^400": with_text("0.5", "1" + "0" * 400),
    "a loss of -10^400": with_text("0.5", "-1" + "0" * 400),
    "a loss that is text": with_report(loss=ESCAPE),
    "a loss of 10^300": with_report(loss=1e300),
    "5,000 digits": with_text("0.5", LONG),
    "examples of 2^60": with_report(examples=2**60),
    "examples below nothing": with_report(examples=-1),
    "half an example": with_report(examples=2.5),
    "true examples": with_report(examples=True),
    "no report": with_fields(reports={}),
    "reports that are a list": with_fields(reports=[REPORT]),
    "a report that is a list": with_fields(reports={HOSTILE: [1]}),
    "a number of its own": with_report(method={"spy": 1.0}),
    "a failure with escapes": with_fields(failures={HOSTILE: ESCAPE * 10**4}),
    "a failure that is an object": with_fields(failures={HOSTILE: {"a": [1]}}),
    "times without end": with_text('"failures"', '"encrypt": Infinity, "failures"'),
    "a time before now": with_fields(encrypt=-1.0),
    "a time of 10^400": with_text('"failures"', '"decrypt": 1' + "0" * 400 + ', "failures"'),
    "a time that is NaN": with_text('"failures"', '"decrypt": NaN, "failures"'),
    "a body 10^5 deep": with_fields(raw={"body": DEEP}),
    "reports 10^5 deep": with_text("0.5", DEEP),
    "a body that is a list": with_fields(raw={"body": "[]"}),
    "no JSON": with_fields(raw={"body": ESCAPE}),
    "a key twice": with_text('"examples"', '"examples": 1, "examples"'),
    "layouts of 10^6 rows": with_fields(raw={"layouts": LAYOUTS}),
    "layouts 10^5 deep": with_fields(raw={"layouts": DEEP}),
    "layouts of no type": with_fields(raw={"layouts": '{"body": {"dtype": "O", "shapes": []}}'}),
    "10^9 rows": with_fields(raw={"rows": 10**9, "layouts": "{}"}),
    "-1 rows": with_fields(raw={"rows": -1}),
    "10^9 opaque rows": with_fields(raw={"opaque": 10**9}),
    "places that are not there": with_fields(raw={"where": '{"body": [5]}'}),
    "no arrays": lambda _, m: Message(RecordDict(), reply_to=m),
    "arrays of garbage": with_update(garbage),
    "arrays that claim to be huge": with_update(huge),
    "another shape": lambda _, m: Message(
        pack([Parts({"body": Part.of({"w": torch.ones(3)})})], {"reports": {HOSTILE: REPORT}}),
        reply_to=m,
    ),
    "updates of NaN": with_update(full(float("nan"))),
    "updates without end": with_update(full(float("inf"))),
    "an error with escapes": lambda _, m: Message(Error(2, ESCAPE * 10**4), reply_to=m),
    "an error of an odd code": lambda _, m: Message(Error(-(2**40), ""), reply_to=m),
}


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
    from fedpers.config import load_config

    spoilers = iter([*TRAINED.values()] * 3)

    class Hostile(SerialGrid):
        """Its second node answers all but the roster in another odd way each time."""

        def node_id(self, node: int) -> int:
            return list(self.get_node_ids())[node]

        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            late = message.metadata.message_type != "query.roster"
            if message.metadata.dst_node_id != self.node_id(1) or not late or reply.has_error():
                return reply
            try:
                return next(spoilers)(reply, message)
            except (AssertionError, KeyError):  # that one is not for this kind of message
                return Message(Error(2, ESCAPE), reply_to=message)

    config = load_config(None, [*digits, "strategy.name=fedavg", "rounds=4"])
    run_serial(config, tmp_path / "run", make_grid=Hostile, show=lambda line: None)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["failed"] is None and report["rounds"] == 4
    for path in (tmp_path / "run").glob("*.json*"):
        text = path.read_text()
        assert "\x1b" not in text and "\\u001b" not in text and "Infinity" not in text, path
