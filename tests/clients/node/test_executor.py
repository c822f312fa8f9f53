"""The resident node: what answers, and how it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from links import Link, link
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
def running(server: Link, device: Device) -> Iterator[list[str]]:
    """A node at work; the lines that it shows."""
    lines: list[str] = []
    node = Resident(Fleet(server.access), Executor(device), lines.append)
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
    with running(server, device) as lines:
        assert done.wait(20), lines
    assert server.replies[0].messages_list[0].error.reason == POLICY
    assert server.calls.count("confirm-message-received") == 1
    (line,) = (device.state / "policy.log").read_text().splitlines()
    assert "train refused: bytes: got more than" in line
    assert server.calls[-1] == "deactivate-node"


def test_no_policy_no_node(server: Link, device: Device) -> None:
    assert device.policy is not None
    device.policy.chmod(0o666)
    with pytest.raises(ConfigError, match="takes a file that nobody but its owner can write"):
        Resident(Fleet(server.access), Executor(device)).run()
    device.policy.unlink()
    with pytest.raises(ConfigError, match="takes a file that can be read"):
        Resident(Fleet(server.access), Executor(device)).run()
    assert server.calls == []
