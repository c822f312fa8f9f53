"""The resident node: what answers, and how it goes on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto import heartbeat_pb2
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from links import Link, Said, asked, link
from owner import allowing

from clients.node.device import Device
from clients.node.executor import Executor, Resident
from clients.node.fleet import Fleet
from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.failures import FAILED, POLICY


@pytest.fixture
def device(small: Callable[..., Config], tmp_path: Path) -> Device:
    np.savez(tmp_path / "own.npz", x=np.zeros((40, 6), np.float32), y=np.arange(40) % 3)
    policy = allowing(tmp_path / "policy.yaml", small("fedavg"), "fedavg", bytes=10_000)
    return Device("clinic/7", tmp_path / "own.npz", tmp_path / "state", policy=policy)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Link]:
    with link(tmp_path / "link") as found:
        yield found


def asking(kind: str = "train", size: int = 10) -> Message:
    records = {
        "parts": ArrayRecord({"a": Array("uint8", (size,), "some", bytes(size))}),
        "message": ConfigRecord({"body": "{}"}),
    }
    return make_message(Metadata(1, "", 1, 7, "", "1", 0.0, 3600.0, kind), RecordDict(records))


@contextmanager
def running(server: Link, executor: Executor) -> Iterator[list[str]]:
    """A node at work; the lines that it shows."""
    lines: list[str] = []
    node = Resident(Fleet(server.access), executor, lines.append, beat=0.05)
    thread = threading.Thread(target=node.run)
    thread.start()
    try:
        yield lines
    finally:
        node.stopped.set()
        thread.join()


def test_whatever_is_asked_gets_a_word(device: Device) -> None:
    for kind in ("train", "query.roster", "query.nosuch", "evaluate.train"):
        message = asking(kind)
        message.metadata.__dict__["_message_id"] = "m"
        reply = Executor(device).answer(message)
        told = reply.error.reason if reply.has_error() else str(reply.content)
        assert POLICY in told or told == FAILED, kind
    assert (device.state / "policy.log").read_text().count("refused") == 2


def test_too_much_is_refused_with_a_line_in_the_log(server: Link, device: Device) -> None:
    done = threading.Event()
    server.asks(asking(size=20_000))
    pushed = server.answers["push-messages"]
    server.answers["push-messages"] = lambda body: (done.set(), pushed(body))[1]
    with running(server, Executor(device)) as lines:
        assert done.wait(20), lines
    assert server.replies[0].messages_list[0].error.reason == POLICY
    assert server.calls.count("confirm-message-received") == 1
    (line,) = (device.state / "policy.log").read_text().splitlines()
    assert "train refused: bytes: got more than" in line
    assert server.calls[-1] == "deactivate-node"


@dataclass(frozen=True)
class Busy(Executor):
    """Trains, as far as the interpreter can tell, until three signs of life have come."""

    alive: threading.Semaphore

    def answer(self, message: Message) -> Message:
        layer, x = torch.nn.Linear(300, 300), torch.ones(300, 300)
        for _ in range(3):
            while not self.alive.acquire(blocking=False):
                layer(x).sum().backward()
        return super().answer(message)


def test_it_gives_signs_of_life_while_it_trains(server: Link, device: Device) -> None:
    alive, done, beat = threading.Semaphore(0), threading.Event(), server.answers
    server.asks(asking())
    answers = dict(server.answers)

    def beats(body: bytes) -> Said:
        if "confirm-message-received" in server.calls:
            alive.release()
        return answers["send-node-heartbeat"](body)

    beat["send-node-heartbeat"] = beats
    beat["push-messages"] = lambda body: (done.set(), answers["push-messages"](body))[1]
    with running(server, Busy(device, alive)) as lines:
        assert done.wait(60), lines
    during = server.calls[server.calls.index("confirm-message-received") :]
    assert during[: during.index("push-messages")].count("send-node-heartbeat") >= 3


def test_a_superlink_that_forgot_it_is_joined_again(server: Link, device: Device) -> None:
    joined, forgets = threading.Semaphore(0), heartbeat_pb2.SendNodeHeartbeatResponse()
    answers = dict(server.answers)
    server.answers["activate-node"] = lambda b: (joined.release(), answers["activate-node"](b))[1]
    with running(server, Executor(device)):
        assert joined.acquire(timeout=20)
        server.answers["send-node-heartbeat"] = lambda _: forgets.SerializeToString()
        assert joined.acquire(timeout=20)
        server.answers["send-node-heartbeat"] = answers["send-node-heartbeat"]


def test_a_superlink_that_is_gone_for_a_while(server: Link, device: Device) -> None:
    """In the middle of a message, and before the reply is sent."""
    done, failing = threading.Event(), dict.fromkeys(("pull-object", "push-messages"), 2)
    server.asks(asking(size=100))
    answers = dict(server.answers)

    def failing_at_first(name: str) -> Callable[[bytes], Said]:
        def call(body: bytes) -> Said:
            failing[name] -= 1
            if failing[name] >= 0:
                return 503, b""
            if name == "push-messages":
                done.set()
            return answers[name](body)

        return call

    server.answers |= {name: failing_at_first(name) for name in failing}
    with running(server, Executor(device)) as lines:
        assert done.wait(20), lines
    assert len(server.replies) == 1 and lines.count("the SuperLink is there again") == 4
    assert (device.state / "policy.log").read_text().count("\n") == 1  # it was answered once


def test_a_superlink_that_does_not_want_it(server: Link, device: Device) -> None:
    for status in (400, 401, 403):
        server.answers["activate-node"] = lambda _, status=status: (status, b"who?")
        with pytest.raises(ConfigError, match=r"--server: got 'activate-node: who\?', takes"):
            Resident(Fleet(server.access), Executor(device), print).run()


ODD: list[dict[str, Any]] = [
    *({"created_at": odd} for odd in (math.nan, math.inf, -1e308, 0.0)),
    *({"ttl": odd} for odd in (math.nan, math.inf, -math.inf, 1e308, -1.0, 0.0)),
    *({"run_id": 2**64 - 1, "src_node_id": odd} for odd in (0, 2**64 - 1)),
    *({"group_id": odd} for odd in ("x" * 50_000, "\x1b[2J", "\0")),
    *({"reply_to_message_id": "m", "dst_node_id": odd} for odd in (0, 8)),
]


def test_odd_messages_cost_themselves(server: Link, device: Device) -> None:
    odd, tree = [], get_object_tree(asking())
    for fields in ODD:
        message = message_to_proto(remove_content_from_message(asking()))
        for name, value in fields.items():
            setattr(message.metadata, name, value)
        odd.append(asked(message, tree))
    odd += [asked(message_to_proto(asking()), ObjectTree(object_id=name)) for name in ("", "\n")]
    server.asks(asking())
    last, done = server.answers["pull-messages"], threading.Event()
    server.answers["pull-messages"] = lambda b: odd.pop() if odd else (done.set(), last(b))[1]
    server.headers["set-cookie"] = "a=b"
    with running(server, Executor(device)) as lines:
        assert done.wait(60), lines
    assert server.calls.count("activate-node") == 1
    print(len(server.replies), "were answered")


def test_one_node_works_in_a_state_folder(server: Link, device: Device) -> None:
    joined, answers = threading.Event(), dict(server.answers)
    server.answers["activate-node"] = lambda b: (joined.set(), answers["activate-node"](b))[1]
    with running(server, Executor(device)):
        assert joined.wait(20)
        with pytest.raises(ConfigError, match=r"--state: got .* takes a folder that no other node"):
            Resident(Fleet(server.access), Executor(device)).run()
    assert server.calls.count("activate-node") == 1


def test_no_policy_no_node(server: Link, device: Device) -> None:
    assert device.policy is not None
    device.policy.chmod(0o666)
    with pytest.raises(ConfigError, match="takes a file that nobody but its owner can write"):
        Resident(Fleet(server.access), Executor(device)).run()
    device.policy.unlink()
    with pytest.raises(ConfigError, match="takes a file that can be read"):
        Resident(Fleet(server.access), Executor(device)).run()
    assert server.calls == []
