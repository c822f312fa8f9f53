"""Nodes that lie in their answers, or have another key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sealing_nodes import HOSTS, SealingNodes, pair
from spoils import foreign

from fedpers.channels.sealed.sealed_parts import SealedParts, open_parts
from fedpers.errors import FedpersError, RunError
from fedpers.parts import Parts
from fedpers.records import pack


def test_a_mean_is_opened_by_the_next_node_if_one_opens_something_else(seal: Any) -> None:
    server = seal("perada", "strategy.params.kd_steps=1")
    asked = []

    def opens(node: int, row: SealedParts) -> Any:
        asked.append(node)
        good = open_parts(server.grid.cipher, row)
        nan = {n: p.like(torch.full_like(p.vector, torch.nan)) for n, p in good.items()}
        return [row, Parts(nan), good][node]

    server.grid.opens = opens
    server.train()
    assert asked == [0, 1, 2] and isinstance(server.strategy.parts, Parts)
    server.grid.opens = lambda node, row: row
    with pytest.raises(RunError, match="no node could open a mean"):
        server.train(2)


def test_the_update_of_a_single_client_is_not_opened_for_the_server(seal: Any) -> None:
    spoils = dict.fromkeys("123", foreign)
    server = seal("perada", spoils=spoils)
    server.grid.opens = lambda node, row: pytest.fail("it was asked for")
    before = server.strategy.parts
    assert sorted(server.train()) == ["1", "2", "3"]
    assert server.strategy.parts is before


@pytest.mark.parametrize(
    "row", [[1.0], "1234", None, [1.0, 1.0, 1.0, float("nan")], [1, 1, 1, -1], [0.0] * 4, [2.0] * 4]
)
def test_similarities_that_are_none_cost_their_node_alone(seal: Any, row: Any) -> None:
    server = seal("pfedsim", "strategy.params.rho=0.25", "rounds=4", scheme="ckks")
    server.grid.weighs = lambda node, rows: {**rows, "3": row} if node == 1 else rows
    server.train()
    assert sorted(server.strategy.rows) == ["1", "2", "4"]
    opened = open_parts(server.grid.cipher, server.strategy.rows["1"])
    assert float(opened["body"].vector.mean()) == pytest.approx(2.5, abs=1e-4)
    assert float(opened["head"].vector.mean()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("answer", [{}, [], "x", None])
def test_a_round_without_similarities_changes_no_row(seal: Any, answer: Any) -> None:
    server = seal("pfedsim", "strategy.params.rho=0.25", "rounds=4", scheme="ckks")
    server.grid.weighs = lambda node, rows: answer
    server.train()
    assert server.strategy.rows == {}
    assert server.mean() == pytest.approx(3.0, abs=1e-4)


def test_a_node_speaks_for_its_own_clients_only(seal: Any) -> None:
    server = seal("pfedsim", "strategy.params.rho=0.25", "rounds=4", scheme="ckks")
    everybody = {client: [1.0, 0.0, 0.0, 0.0] for client in "1234"}
    server.grid.weighs = lambda node, rows: everybody if node == 2 else rows
    server.train()
    values = {c: open_parts(server.grid.cipher, r) for c, r in server.strategy.rows.items()}
    bodies = {client: float(parts["body"].vector.mean()) for client, parts in values.items()}
    assert bodies == pytest.approx({"1": 2.5, "2": 2.5, "3": 2.5, "4": 1.0}, abs=1e-4)


def test_a_node_with_another_key_is_named(seal: Any) -> None:
    with pytest.raises(
        FedpersError, match=r"^node \d+ has key [0-9a-f]{16}, takes [0-9a-f]{16}; g"
    ):
        seal("fedavg", keys={1: 1})


def test_one_that_comes_later_is_refused_by_name(
    seal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = seal("fedavg", keys={2: 1}, hosts=(("1", "2"), ("3",)))
    later = SealingNodes("bfv", HOSTS, keys={2: 1})
    server.run.roster.refresh(later, pack([], server.run.post.header()), timeout=0.05)
    node = list(later.get_node_ids())[2]
    wrong = pair("bfv", 1).key_id
    right = server.strategy.channel.cipher.key_id
    assert f"node {node} refused: key {wrong}, not {right}" in caplog.text
    assert server.run.roster.clients == ["1", "2", "3"]


def test_a_cohort_beyond_the_keys_room_is_refused(seal: Any) -> None:
    hosts = [[str(k) for k in range(1, 10)]]  # keys here have room for 8
    with pytest.raises(FedpersError, match=r"cohort: got 9, takes 1 to 8 vectors"):
        seal("fedavg", hosts=hosts)
