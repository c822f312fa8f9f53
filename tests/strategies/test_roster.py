"""Who hosts whom."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st

from fedpers.errors import FedpersError, RunError
from fedpers.parts import Part, Parts
from fedpers.records import pack
from strategies.roster import Roster, natural_order


def enquiry() -> RecordDict:
    return pack([], {})


def test_clients_are_in_natural_order_with_their_hosts(nodes: Any) -> None:
    grid, roster = nodes([["10", "b"], ["2", "a"], []]), Roster()
    assert roster.refresh(grid, enquiry(), 1) == 1
    assert roster.clients == ["2", "10", "a", "b"]
    first, second, third = (grid.node_id(k) for k in range(3))
    assert roster.hosts == {first: ["10", "b"], second: ["2", "a"], third: []}
    assert roster.by_node(["10", "2", "nobody"]) == {first: ["10"], second: ["2"]}
    assert roster.scored == "toy"
    # Nodes that are known are not asked again.
    roster.refresh(grid, enquiry(), 1)
    assert len(grid.seen) == 3


@given(st.lists(st.one_of(st.integers(0, 10**6).map(str), st.text(max_size=3))))
@example(["1", "01"])
def test_numbers_sort_by_value_before_names(clients: list[str]) -> None:
    ordered = sorted(clients, key=natural_order)
    numbers = [int(client) for client in ordered if client.isdecimal()]
    names = [client for client in ordered if not client.isdecimal()]
    assert numbers == sorted(numbers) and names == sorted(names)
    assert [c.isdecimal() for c in ordered] == [True] * len(numbers) + [False] * len(names)
    # "1" and "01" are two clients: the order never hangs on who came first.
    clients.reverse()
    assert sorted(clients, key=natural_order) == ordered


def test_a_second_node_cannot_claim_a_client(nodes: Any, log: pytest.LogCaptureFixture) -> None:
    grid, roster = nodes([["1", "2"], ["3", "2"], ["4"]]), Roster()
    roster.refresh(grid, enquiry(), 1)
    assert roster.clients == ["1", "2", "4"]
    assert grid.node_id(1) not in roster.hosts
    assert "client 2 is hosted by another node" in log.text
    roster.refresh(grid, enquiry(), 1)
    assert len(grid.seen) == 3 and roster.refusal is None  # it is not asked again
    # Nor does a node count a client twice.
    double = nodes([["1", "1"]])
    roster = Roster()
    roster.refresh(double, enquiry(), 1)
    assert roster.clients == ["1"]


def test_a_node_that_leaves_takes_its_clients_and_may_come_back(
    nodes: Any, log: pytest.LogCaptureFixture
) -> None:
    grid, roster = nodes([["1", "2"], ["3"]]), Roster()
    roster.refresh(grid, enquiry(), 1)
    grid.gone = {0}
    roster.refresh(grid, enquiry(), 1)
    assert roster.clients == ["3"]
    assert f"node {grid.node_id(0)} left with clients 1, 2" in log.text
    grid.gone = set()
    roster.refresh(grid, enquiry(), 1)
    assert roster.clients == ["1", "2", "3"]


def test_a_node_that_does_not_answer_is_asked_again(
    nodes: Any, log: pytest.LogCaptureFixture
) -> None:
    grid, roster = nodes([["1"], ["2"], ["3"]], {1: "mute"}), Roster()
    grid.silent = {2}
    roster.refresh(grid, enquiry(), 0)
    assert roster.clients == ["1"]
    assert "does not say whom it hosts: node failed (code 2)" in log.text
    assert "does not say whom it hosts: no answer within 0 s" in log.text
    grid.acts, grid.silent = {}, set()
    roster.refresh(grid, enquiry(), 0)
    assert roster.clients == ["1", "2", "3"]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, each line once, whatever other handlers there are."""
    lines: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    caplog.set_level(logging.INFO, logger="fedpers")
    monkeypatch.setattr(logging.getLogger("fedpers"), "handlers", [Keeping()])
    return lines


def test_for_whom_a_run_waits_is_said_once(
    nodes: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.roster.TELL", 0.0)
    monkeypatch.setattr("strategies.roster.LOOK", 0.0)
    grid, roster = nodes([["1"], ["2"], ["3"]]), Roster()
    grid.gone = {1, 2}

    class Arriving(type(grid)):  # type: ignore[misc]
        """Another node is there at each fourth look."""

        looks = 0

        def get_node_ids(self) -> list[int]:
            self.looks += 1
            self.gone = {2} if self.looks == 4 else set() if self.looks == 8 else self.gone
            return list(super().get_node_ids())

    grid.__class__ = Arriving
    roster.wait(grid, enquiry(), least=3, timeout=30)
    line = "waiting for clients: {} are there, strategy.min_clients takes 3"
    assert told == [line.format(1), line.format(2)]
    grid.gone = {0}
    roster.gather(grid, enquiry(), least=3, timeout=0.01)
    assert told[-1] == line.format(2) + "; away: 1"


def test_a_round_that_has_enough_waits_for_nobody(nodes: Any, told: list[str]) -> None:
    Roster().wait(nodes([["1"]]), enquiry(), least=1, timeout=30)
    assert told == []


def test_held_out_clients_are_newcomers_and_a_node_holds_out_only_its_own(nodes: Any) -> None:
    grid, roster = nodes([["1"], ["2", "3"]], {1: "holds all"}), Roster()
    roster.refresh(grid, enquiry(), 1)
    assert roster.clients == ["1"] and roster.newcomers == ["2", "3"]


def test_a_refusal_stops_a_run_that_has_not_begun(nodes: Any) -> None:
    grid = nodes([["1"], ["2"]], {1: "refuse"})
    with pytest.raises(FedpersError, match=r"^data\.path: got None, takes a file$"):
        Roster().wait(grid, enquiry(), least=1, timeout=5)


def test_a_late_node_that_refuses_costs_nobody_else(
    nodes: Any, log: pytest.LogCaptureFixture
) -> None:
    grid, roster = nodes([["1"], ["2"]], {1: "refuse"}), Roster()
    grid.gone = {1}
    roster.wait(grid, enquiry(), least=1, timeout=5)
    grid.gone = set()
    roster.refresh(grid, enquiry(), 1)
    assert roster.clients == ["1"] and "cannot run this: data.path" in log.text
    roster.refresh(grid, enquiry(), 1)
    assert len(grid.seen) == 2


def test_waiting_ends_with_enough_clients_or_with_an_error(nodes: Any) -> None:
    grid = nodes([["1"], ["2", "3"]])
    Roster().wait(grid, enquiry(), least=3, timeout=5)
    started = time.monotonic()
    line = r"nodes: got 2 with 3 clients within 0\.1 s, takes 1 with at least 4 clients"
    with pytest.raises(RunError, match=line):
        Roster().wait(grid, enquiry(), least=4, timeout=0.1)
    assert time.monotonic() - started < 2


def test_in_a_simulation_all_nodes_are_waited_for(nodes: Any) -> None:
    class Slow(nodes):  # type: ignore[misc]
        """One more node is there each time one looks."""

        looks = 0

        def get_node_ids(self) -> list[int]:
            self.looks += 1
            return list(super().get_node_ids())[: self.looks]

    grid, roster = Slow([["1"], ["2"], ["3"]]), Roster()
    grid.total = 3
    roster.wait(grid, enquiry(), least=1, timeout=5)
    assert roster.clients == ["1", "2", "3"] and grid.looks == 3


# -- silence, and answers that make no sense -----------------------------------------------------


def test_a_silent_node_is_waited_for_once_and_not_for_long(
    nodes: Any, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("strategies.roster.JOIN", 0.2)
    grid, roster = nodes([["1"], ["2"]]), Roster()
    grid.silent = {1}
    started = time.monotonic()
    roster.wait(grid, enquiry(), least=1, timeout=60)
    waited = time.monotonic() - started
    assert 0.2 <= waited < 5 and roster.clients == ["1"]
    started = time.monotonic()
    for _ in range(5):  # further rounds
        roster.gather(grid, enquiry(), least=1, timeout=60)
    assert time.monotonic() - started < 0.2
    assert len(grid.seen) == 2  # it was not asked again
    assert log.text.count("no answer within 0.2 s") == 1


def test_a_node_that_fails_again_and_again_holds_nobody_up(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(nodes):  # type: ignore[misc]
        """The second node's replies are there at the second look, the first's at the sixth."""

        def pull_messages(self, message_ids: Any) -> list[Any]:
            looks.update(message_ids)
            first = self.node_id(0)
            to = {k for k, reply in self._replies.items() if reply.metadata.src_node_id == first}
            ready = [one for one in message_ids if looks[one] >= (6 if one in to else 2)]
            return list(super().pull_messages(ready))

    looks = Counter[str]()
    monkeypatch.setattr("strategies.roster.JOIN", 0.3)
    grid, roster = Slow([["1"], ["2"]], {1: "mute"}), Roster()
    started = time.monotonic()
    roster.wait(grid, enquiry(), least=1, timeout=60)
    assert time.monotonic() - started < 10 and roster.clients == ["1"]
    assert len(grid.seen) >= 3  # it was asked again


def test_an_answer_that_comes_late_is_taken_up(nodes: Any) -> None:
    class Late(nodes):  # type: ignore[misc]
        """Node 1's answers stay on the way until they are let through."""

        held = True

        def pull_messages(self, message_ids: Any) -> list[Any]:
            late = self.node_id(1)
            to = {k for k, reply in self._replies.items() if reply.metadata.src_node_id == late}
            asked = [one for one in message_ids if not (self.held and one in to)]
            return list(super().pull_messages(asked))

    grid, roster = Late([["1"], ["2"]]), Roster()
    roster.refresh(grid, enquiry(), 60)
    roster.refresh(grid, enquiry(), 0)  # asked a second time
    assert roster.clients == ["1"] and len(grid.seen) == 3
    grid.held = False
    roster.refresh(grid, enquiry(), 60)
    assert roster.clients == ["1", "2"] and len(grid.seen) == 3
    roster.refresh(grid, enquiry(), 60)  # the second answer is not taken for another node's
    assert roster.clients == ["1", "2"]


def test_a_client_that_came_back_on_another_node_while_the_first_seemed_there(
    nodes: Any, log: pytest.LogCaptureFixture
) -> None:
    grid, roster = nodes([["1"], ["2"], ["1"]]), Roster()
    roster.refresh(grid, enquiry(), 60)
    assert grid.node_id(2) not in roster.hosts and "hosted by another node" in log.text
    grid.gone = {0}  # its death is noticed
    roster.refresh(grid, enquiry(), 60)
    assert roster.hosts[grid.node_id(2)] == ["1"]
    assert roster.clients == ["1", "2"] and roster.absent == []


def test_who_is_absent_is_known(nodes: Any) -> None:
    grid, roster = nodes([["1", "10"], ["2"], ["3"]], {"3": "held out"}), Roster()
    roster.refresh(grid, enquiry(), 60)
    assert roster.absent == []
    grid.gone = {0, 2}
    roster.refresh(grid, enquiry(), 60)
    assert roster.absent == ["1", "10"]  # a newcomer takes no part
    grid.gone = set()
    roster.refresh(grid, enquiry(), 60)
    assert roster.absent == []


@pytest.mark.parametrize("body", [{}, {"clients": 3}, {"clients": ["2"], "scored": "x"}])
def test_an_answer_that_makes_no_sense_costs_nobody_else(
    nodes: Any, log: pytest.LogCaptureFixture, body: dict[str, Any]
) -> None:
    class Odd(nodes):  # type: ignore[misc]
        def _roster(self, message: Message, context: Context) -> Message:
            if context.node_config["partition-id"]:
                return Message(pack([], body), reply_to=message)
            return super()._roster(message, context)  # type: ignore[no-any-return]

    grid, roster = Odd([["1"], ["2"]]), Roster()
    roster.refresh(grid, enquiry(), 60)
    assert roster.clients == ["1"] and "its answer cannot be read" in log.text


# -- what a device needs of the model ------------------------------------------------------------


def lacking(nodes: Any, hosts: list[list[str]], takes: bool = True) -> Any:
    """A grid of nodes that lack the base, and keep it when they get it."""

    class Devices(nodes):  # type: ignore[misc]
        def __init__(self, hosts: list[list[str]]) -> None:
            super().__init__(hosts)
            self.has: set[int] = set()
            self.received: list[tuple[int, int]] = []

        def _roster(self, message: Message, context: Context) -> Message:
            node, rows, _ = self._open(message, context)
            self.received.append((node, len(rows)))
            if rows and takes:
                self.has.add(node)
            if node not in self.has:
                return Message(pack([], {"needs": "base"}), reply_to=message)
            return super()._roster(message, context)  # type: ignore[no-any-return]

    return Devices(hosts)


def test_a_device_that_lacks_the_base_gets_it_once(nodes: Any) -> None:
    grid, roster = lacking(nodes, [["1"], ["2"]]), Roster()
    roster.base = pack([Parts({"base": Part.of({"w": torch.ones(3)})})], {})
    grid.has.add(0)
    roster.refresh(grid, enquiry(), 60)
    assert roster.clients == ["1", "2"]
    assert grid.received == [(0, 0), (1, 0), (1, 1)]
    roster.refresh(grid, enquiry(), 60)
    assert len(grid.received) == 3
    grid.gone = {1}
    roster.refresh(grid, enquiry(), 60)
    grid.gone = set()
    roster.refresh(grid, enquiry(), 60)  # back, with its disk
    assert roster.clients == ["1", "2"] and grid.received[3:] == [(1, 0)]


def test_a_device_that_does_not_take_the_base_is_named(
    nodes: Any, log: pytest.LogCaptureFixture
) -> None:
    grid, roster = lacking(nodes, [["1"], ["2"]], takes=False), Roster()
    roster.base = pack([Parts({"base": Part.of({"w": torch.ones(3)})})], {})
    grid.has.add(0)
    roster.wait(grid, enquiry(), least=1, timeout=60)
    assert roster.clients == ["1"] and "lacks base, and did not take it" in log.text
    assert grid.received == [(0, 0), (1, 0), (1, 1)]


def test_an_answer_that_comes_while_another_device_gets_the_base(
    nodes: Any, log: pytest.LogCaptureFixture
) -> None:
    grid = lacking(nodes, [["1"], ["2"]])

    class Later(type(grid)):  # type: ignore[misc]
        """The second device's answer is there once the first has got the base."""

        def pull_messages(self, message_ids: Any) -> list[Any]:
            late = self.node_id(1) if (0, 1) not in self.received else None
            to = {k for k, reply in self._replies.items() if reply.metadata.src_node_id == late}
            return list(super().pull_messages([one for one in message_ids if one not in to]))

    grid.__class__ = Later
    roster = Roster()
    roster.base = pack([Parts({"base": Part.of({"w": torch.ones(3)})})], {})
    roster.refresh(grid, enquiry(), 60)
    assert roster.clients == ["1", "2"] and log.text == ""
    assert sorted(grid.received) == [(0, 0), (0, 1), (1, 0), (1, 1)]
