"""What one node may answer to spoil everybody's run, and a run that has such a node.

``python hostile.py FOLDER attacked SETTING...`` runs it, and prints its peak memory in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedpers.config import load_config
from fedpers.parts import Part, Parts
from fedpers.records import pack
from simulations.backends.serial import SerialGrid, run_serial

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


class HostileGrid(SerialGrid):
    """Its second node answers all but the roster in another odd way each time."""

    spoilers = cycle(TRAINED.values())

    def node_id(self, node: int) -> int:
        """Of a node by its number."""
        return list(self.get_node_ids())[node]

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        late = message.metadata.message_type != "query.roster"
        if message.metadata.dst_node_id != self.node_id(1) or not late or reply.has_error():
            return reply
        try:
            return next(self.spoilers)(reply, message)
        except (AssertionError, KeyError):  # that one is not for this kind of message
            return Message(Error(2, ESCAPE), reply_to=message)


if __name__ == "__main__":
    folder, attacked, *settings = sys.argv[1:]
    made = HostileGrid if attacked == "attacked" else SerialGrid
    run_serial(load_config(None, settings), Path(folder), make_grid=made, show=lambda line: None)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
