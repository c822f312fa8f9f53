"""Nodes that lie in their answers, or have another key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing_nodes import HOSTS, SealingNodes, pair
from spoils import foreign

from fedpers.channels.sealed.sealed_parts import open_parts
from fedpers.errors import FedpersError
from fedpers.parts import Parts
from fedpers.records import pack

Say = Callable[[int, list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]]


def instead(kind: str, say: Say) -> Any:
    """What nodes answer to one kind of the channel's messages instead of the truth."""
    return lambda node, asked, rows, told: say(node, rows, told) if asked == kind else (rows, told)


def opens_by_node(server: Any) -> list[int]:
    return [node for node, kind in server.grid.asked if kind == "open"]


DISTIL = "strategy.params.kd_steps=1"


def test_a_mean_is_what_two_nodes_open_alike(seal: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = seal("perada", DISTIL)

    def doubled(node: int, rows: list[Any], told: Any) -> Any:
        if node != 0:
            return rows, told
        return [Parts({n: p.like(2 * p.vector) for n, p in row.items()}) for row in rows], told

    server.grid.says = instead("open", doubled)
    assert server.train() == {}
    assert opens_by_node(server) == [0, 1, 2] and isinstance(server.strategy.parts, Parts)
    assert "opens something else than two others do" in caplog.text
    server.grid.says, server.grid.asked = None, []
    server.train(2)
    assert opens_by_node(server) == [0, 1]


def not_finite(row: Parts) -> Parts:
    return Parts({n: p.like(torch.full_like(p.vector, torch.nan)) for n, p in row.items()})


@pytest.mark.parametrize("lie", [not_finite, lambda row: Parts(), lambda row: row.only(["logits"])])
def test_a_round_whose_mean_nobody_opens_changes_nothing(seal: Any, lie: Any) -> None:
    server = seal("perada", DISTIL)
    before = server.strategy.parts
    server.grid.says = instead("open", lambda node, rows, told: ([lie(r) for r in rows], told))
    server.train()
    assert server.strategy.parts is before and server.run.unused is not None
    assert "no two nodes open the same mean" in server.run.unused
    server.grid.says = None
    assert server.train(2) == {} and server.run.unused is None


def test_the_update_of_a_single_client_is_not_opened_for_the_server(seal: Any) -> None:
    server = seal("perada", spoils=dict.fromkeys("123", foreign))
    before = server.strategy.parts
    assert sorted(server.train()) == ["1", "2", "3"]
    assert opens_by_node(server) == [] and server.strategy.parts is before


STAGES = ("strategy.params.rho=0.25", "rounds=4")  # it personalises from round 1 on
ROWS: list[Any] = [[1.0], "1234", None, [1.0, 1.0, 1.0, float("nan")], [1, 1, 1, -1], [0.0] * 4]


@pytest.mark.parametrize("row", [*ROWS, [2.0] * 4, [1.0, 0.0, 0.0, 0.0]])
def test_similarities_of_one_node_alone_count_for_nothing(seal: Any, row: Any) -> None:
    server = seal("pfedsim", *STAGES, scheme="ckks")

    def lying(node: int, rows: Any, told: dict[str, Any]) -> Any:
        return rows, {"rows": {**told["rows"], "3": row}} if node == 0 else told

    server.grid.says = instead("similarity", lying)
    server.train()
    assert sorted(server.strategy.rows) == ["1", "2", "3", "4"]
    for client, found in server.strategy.rows.items():
        opened = open_parts(server.grid.cipher, found)
        assert float(opened["body"].vector.mean()) == pytest.approx(2.5, abs=1e-4)
        assert float(opened["head"].vector.mean()) == pytest.approx(float(client), abs=1e-4)


@pytest.mark.parametrize("answer", [{}, [], "x", None])
def test_a_round_without_similarities_changes_no_row(seal: Any, answer: Any) -> None:
    server = seal("pfedsim", *STAGES, scheme="ckks")
    server.grid.says = instead("similarity", lambda node, rows, told: (rows, {"rows": answer}))
    server.train()
    assert server.strategy.rows == {}
    assert server.mean() == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("answer", [None, [], [1], "yes", [True, True], {"a": True}])
def test_whether_a_sum_opens_is_a_yes_or_a_no(seal: Any, answer: Any) -> None:
    server = seal("fedavg")
    lie = instead("check", lambda node, rows, told: (rows, {"opens": answer}))
    server.grid.says = lambda node, *said: lie(node, *said) if node == 1 else said[1:]
    assert server.train() == {} and server.mean() == pytest.approx(3.0, abs=2e-4)
    server.grid.says = lie
    before = server.strategy.parts
    server.train(2)
    assert server.strategy.parts is before
    assert "no node tells whether the sum opens" in str(server.run.unused)


def test_a_node_that_says_that_nothing_opens_costs_nobody(seal: Any) -> None:
    server = seal("fedavg")
    server.grid.says = lambda node, kind, rows, told: (
        (rows, {"opens": [False]}) if (node, kind) == (1, "check") else (rows, told)
    )
    assert server.train() == {} and server.mean() == pytest.approx(3.0, abs=2e-4)


def test_a_node_with_another_key_is_named(seal: Any) -> None:
    with pytest.raises(
        FedpersError, match=r"^node \d+ has key [0-9a-f]{16}, takes [0-9a-f]{16}; g"
    ):
        seal("fedavg", keys={1: 1})


def test_one_that_comes_later_is_refused_by_name(
    seal: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    server = seal("fedavg", hosts=(("1", "2"), ("3",)))
    later = SealingNodes("bfv", tmp_path / "stores", HOSTS, keys={2: 1})
    server.run.roster.refresh(later, pack([], server.run.post.header()), timeout=0.05)
    node = list(later.get_node_ids())[2]
    wrong = pair("bfv", 1).key_id
    right = server.strategy.channel.cipher.key_id
    assert f"node {node} refused: key {wrong}, not {right}" in caplog.text
    assert server.run.roster.clients == ["1", "2", "3"]


def test_a_client_that_nobody_knows_is_refused_by_name(
    seal: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    server = seal("fedavg", hosts=(("1", "2"), ("3",)))
    for home in ("stores", "elsewhere"):  # an unknown client, and one with another identity
        later = SealingNodes("bfv", tmp_path / home, (("1", "2"), ("3",), ("4",)))
        server.run.roster.refresh(later, pack([], server.run.post.header()), timeout=0.05)
    assert "refused: 4: got an unknown client, takes those of the registry" in caplog.text
    assert server.run.roster.clients == ["1", "2", "3"]


def test_a_cohort_beyond_the_keys_room_is_refused(seal: Any) -> None:
    hosts = [[str(k) for k in range(1, 10)]]  # keys here have room for 8
    with pytest.raises(FedpersError, match=r"cohort: got 9, takes 1 to 8 vectors"):
        seal("fedavg", hosts=hosts)
