"""Who hosts whom."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from flwr.app import RecordDict
from hypothesis import example, given
from hypothesis import strategies as st

from fedpers.errors import FedpersError, RunError
from fedpers.records import pack
from strategies.roster import Roster, natural_order


def enquiry() -> RecordDict:
    return pack([], {})


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="fedpers")
    logging.getLogger("fedpers").addHandler(caplog.handler)  # a run may have cut it off
    yield caplog
    logging.getLogger("fedpers").removeHandler(caplog.handler)


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
    roster.refresh(grid, enquiry(), 0.05)
    assert roster.clients == ["1"]
    assert "does not say whom it hosts: node failed (code 2)" in log.text
    assert "does not say whom it hosts: no answer within 0.05 s" in log.text
    grid.acts, grid.silent = {}, set()
    roster.refresh(grid, enquiry(), 0.05)
    assert roster.clients == ["1", "2", "3"]


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
