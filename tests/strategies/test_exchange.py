"""Messages to nodes, and their answers sorted by client."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest
import torch
from flwr.app import Error, Message

from fedpers.errors import RunError
from fedpers.parts import Part, Parts
from fedpers.records import pack
from strategies.exchange import NO_ANSWER, collect, group_of, send_and_receive

SENT = Parts({"body": Part.of({"w": torch.zeros(2)})})


def ask(grid: Any, asked: dict[int, list[str]], timeout: float = 0.05) -> list[Message]:
    messages = []
    for node, clients in asked.items():
        body = {"clients": clients, "rows": dict.fromkeys(clients, 0)}
        content = pack([SENT], body)
        messages.append(Message(content, dst_node_id=grid.node_id(node), message_type="train"))
    return list(send_and_receive(grid, messages, timeout))


def test_answers_are_sorted_by_client(nodes: Any) -> None:
    hosts = [["2", "1"], ["10"], ["3"]]
    grid = nodes(hosts, {"1": "fail"})
    asked = dict(enumerate(hosts))
    replies = ask(grid, asked)
    assert {r.metadata.src_node_id for r in replies} == {grid.node_id(k) for k in range(3)}
    answers = collect(replies, {grid.node_id(k): clients for k, clients in asked.items()})
    found = {client: parts["body"].vector.tolist() for client, parts in answers.rows.items()}
    assert found == {"2": [2.0, 2.0], "10": [10.0, 10.0], "3": [3.0, 3.0]}
    assert answers.failures == {"1": "ValueError: broken"}
    assert answers.nbytes == 3 * 2 * 4  # three updates of two float32
    assert set(answers.bodies) == {grid.node_id(k) for k in range(3)}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise", "node failed (code 2): the reason'>"),
        ("short", "node sent 1 results for 2 clients"),
        ("garbage", "message: cannot be read (KeyError: 'message')"),
        ("list", "reply: got a body that is a list, takes an object"),
    ],
)
def test_a_node_that_fails_costs_its_own_clients(nodes: Any, act: str, reason: str) -> None:
    grid = nodes([["1", "2"], ["3"]], {0: act})
    answers = collect(
        ask(grid, {0: ["1", "2"], 1: ["3"]}),
        {grid.node_id(0): ["1", "2"], grid.node_id(1): ["3"]},
    )
    assert answers.failures == {"1": reason, "2": reason}
    assert list(answers.rows) == ["3"] and list(answers.bodies) == [grid.node_id(1)]


def test_a_silent_node_is_given_up_after_the_timeout(nodes: Any) -> None:
    grid = nodes([["1", "2"], ["3"]])
    grid.silent = {0}
    started = time.monotonic()
    replies = ask(grid, {0: ["1", "2"], 1: ["3"]}, timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 2
    asked = {grid.node_id(0): ["1", "2"], grid.node_id(1): ["3"]}
    answers = collect(replies, asked)
    assert answers.failures == dict.fromkeys(["1", "2"], "no answer within 0.2 s")
    assert list(answers.rows) == ["3"]
    silent = next(reply for reply in replies if reply.has_error())
    assert silent.error.code == NO_ANSWER and silent.metadata.src_node_id == grid.node_id(0)
    # Nobody to ask takes no time.
    started = time.monotonic()
    assert list(send_and_receive(grid, [], timeout=5)) == []
    assert time.monotonic() - started < 1


class LateGrid:
    """A grid whose answers take a while, and that answers for a dead node under its own id."""

    def __init__(self, inner: Any, looks: int) -> None:
        self.inner, self.looks, self.asked = inner, looks, 0

    def push_messages(self, messages: Any) -> Any:
        return self.inner.push_messages(messages)

    def pull_messages(self, ids: Any) -> list[Message]:
        self.asked += 1
        if self.asked < self.looks:
            return []
        return [self._as_superlink(reply) for reply in self.inner.pull_messages(ids)]

    def _as_superlink(self, reply: Message) -> Message:
        if reply.has_error():
            reply.metadata.__dict__["_src_node_id"] = 1
        return reply


def test_late_answers_are_waited_for_and_errors_are_the_nodes(nodes: Any) -> None:
    inner = nodes([["1"], ["3"]], {0: "raise"})
    grid = LateGrid(inner, looks=5)
    messages = [
        Message(
            pack([SENT], {"clients": [c], "rows": {c: 0}}),
            dst_node_id=inner.node_id(k),
            message_type="train",
        )
        for k, c in enumerate(["1", "3"])
    ]
    replies = list(send_and_receive(grid, messages, timeout=5))  # type: ignore[arg-type]
    assert grid.asked == 5
    answers = collect(replies, {inner.node_id(0): ["1"], inner.node_id(1): ["3"]})
    assert answers.failures == {"1": "node failed (code 2): the reason'>"}
    assert list(answers.rows) == ["3"]


def test_a_dead_worker_of_the_simulation_ends_the_run(nodes: Any) -> None:
    grid = nodes([["1"]])
    message = Message(pack([], {}), dst_node_id=grid.node_id(0), message_type="train")
    error = Error(code=0, reason="<class 'ray.exceptions.ActorDiedError'>: gone")
    with pytest.raises(RunError, match="a worker process died"):
        collect([Message(error, reply_to=message)], {grid.node_id(0): ["1"]})
    # Another error of that code is a client's own.
    error = Error(code=0, reason="")
    answers = collect([Message(error, reply_to=message)], {grid.node_id(0): ["1"]})
    assert answers.failures == {"1": "node failed (code 0): no reason given"}


def test_only_clients_that_were_asked_about_count(nodes: Any) -> None:
    grid = nodes([["1", "2"]], {"1": "fail"})
    replies = ask(grid, {0: ["1"]})
    message = Message(pack([], {}), dst_node_id=grid.node_id(0), message_type="train")
    foreign = Message(pack([], {"failures": {"9": "x", "1": "y"}}), reply_to=message)
    answers = collect([*replies, foreign], {grid.node_id(0): ["1"]})
    assert answers.failures == {"1": "y"}


def test_a_reply_that_nobody_waits_for_is_dropped(nodes: Any) -> None:
    class Repeating(nodes):  # type: ignore[misc]
        """Every reply comes twice, at once and with the replies to later messages."""

        sent: list[Message]

        def pull_messages(self, message_ids: Any) -> list[Message]:
            came = list(super().pull_messages(message_ids))
            self.sent = [*getattr(self, "sent", []), *came]
            return [*self.sent, *came]

    grid = Repeating([["1"], ["2"]])
    first = ask(grid, {0: ["1"], 1: ["2"]})
    assert [r.metadata.src_node_id for r in first] == [grid.node_id(0), grid.node_id(1)]
    (second,) = ask(grid, {1: ["2"]})
    assert second not in first and second.metadata.src_node_id == grid.node_id(1)


def test_a_reply_counts_for_the_message_that_it_answers_whatever_the_node_says(nodes: Any) -> None:
    class Lying(nodes):  # type: ignore[misc]
        """Node 0 says that it answers message b, and node 1 answers in the name of node 0."""

        def pull_messages(self, message_ids: Any) -> list[Message]:
            came = list(super().pull_messages(message_ids))
            for reply in came:
                reply.metadata.group_id = "b"
                if reply.metadata.src_node_id == self.node_id(1):
                    reply.metadata.__dict__["_src_node_id"] = self.node_id(0)
            return came

    grid = Lying([["1"], ["3"]])
    asked = {"a": ["1"], "b": ["3"]}
    messages = [
        Message(
            pack([SENT], {"clients": clients, "rows": dict.fromkeys(clients, 0)}),
            dst_node_id=grid.node_id(k),
            message_type="train",
            group_id=group,
        )
        for k, (group, clients) in enumerate(asked.items())
    ]
    answers = collect(send_and_receive(grid, messages, 0.05), asked, group_of)
    assert {c: row["body"].vector.tolist() for c, row in answers.rows.items()} == {"1": [1.0, 1.0]}
    assert answers.failures == {"3": "no answer within 0.05 s"}


def test_replies_come_one_by_one_and_are_not_kept(nodes: Any) -> None:
    grid = nodes([["1"], ["2"]])
    bodies = [{"clients": [c], "rows": {c: 0}} for c in ("1", "1", "1", "2")]
    to = [grid.node_id(k) for k in (0, 0, 0, 1)]
    messages = [
        Message(pack([SENT], body), dst_node_id=node, message_type="train")
        for node, body in zip(to, bodies, strict=True)
    ]
    replies = send_and_receive(grid, messages, timeout=5)
    assert grid.seen == []  # nothing is sent before an answer is asked for
    kept = []
    for sent in (2, 3, 3, 4):  # node 0's next message is sent when its last was taken up
        reply = next(replies)
        assert len(grid.seen) == sent
        kept.append(weakref.ref(reply))
        del reply
    assert list(replies) == []
    gc.collect()
    assert [one() for one in kept] == [None] * 4


def test_many_nodes_that_are_silent_are_looked_for_at_once(nodes: Any) -> None:
    count = 150
    grid = nodes([[str(k)] for k in range(count)])
    grid.silent, looked = set(range(count)), list[int]()
    pull = grid.pull_messages

    def noted(ids: Any) -> Any:
        looked.append(len(ids))
        return pull(ids)

    grid.pull_messages = noted
    replies = ask(grid, {k: [str(k)] for k in range(count)}, timeout=0.1)
    assert len(replies) == count and all(reply.has_error() for reply in replies)
    assert looked[:3] == [64, 86, 150]  # 64, the rest of them, and from then on all


def test_the_servers_own_work_is_not_the_nodes_time(nodes: Any) -> None:
    grid = nodes([["1"]])
    messages = [
        Message(
            pack([SENT], {"clients": ["1"], "rows": {"1": 0}}),
            dst_node_id=grid.node_id(0),
            message_type="train",
        )
        for _ in range(3)
    ]
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        answered = 0
        for reply in send_and_receive(grid, messages, timeout=5):
            answered += not reply.has_error()
            clock[0] += 60
    assert answered == 3
