"""Whom a device may speak for: at the roster, with the keys that Flower knows nodes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedpers.config import load_config
from fedpers.errors import ConfigError
from fedpers.federation import Federation, Member
from fedpers.records import pack
from strategies.claims import Claims, claims_of
from strategies.roster import Roster


def key() -> bytes:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


KEYS = [key() for _ in range(4)]


@pytest.fixture
def registered(nodes: Any) -> Any:
    """``registered(hosts, names)``: nodes that are known by KEYS, under names."""

    def make(hosts: list[list[str]], names: list[str]) -> Any:
        grid = nodes(hosts)

        def get_nodes() -> list[NodeInfo]:
            ids = [grid.node_id(k) for k in range(len(hosts)) if k not in grid.gone]
            known = zip(ids, KEYS, names, strict=False)
            return [NodeInfo(node_id=i, public_key=k, name=n) for i, k, n in known]

        grid.get_nodes = get_nodes
        return grid

    return make


def look(roster: Roster, grid: Any) -> list[str]:
    roster.refresh(grid, pack([], {}), 1)
    return roster.clients


def test_a_name_is_the_client_that_its_key_may_speak_for(
    registered: Any, log: pytest.LogCaptureFixture
) -> None:
    roster = Roster(strangers=True)
    grid = registered([["a"], ["a"], ["c", "d"], ["e"]], ["a", "b", "c", ""])
    assert look(roster, grid) == ["a"]
    assert "it claims client 'a', and the key of 'b' names no such client" in log.text
    assert "it claims client 'd', and the key of 'c' names no such client" in log.text
    assert "its key names no client; register it with --name" in log.text
    assert roster.refusal is None  # it costs them alone
    assert look(roster, grid) == ["a"] and len(grid.seen) == 4  # and they are not asked again


def test_an_impostor_who_comes_first_gains_nothing(registered: Any) -> None:
    roster = Roster(strangers=True)
    grid = registered([["victim"], ["victim"]], ["impostor", "victim"])
    grid.gone = {1}
    assert look(roster, grid) == []
    grid.gone = set()
    assert look(roster, grid) == ["victim"]
    assert list(roster.hosts) == [grid.node_id(1)]


def test_a_node_that_claims_nobody_is_nobody_s_node(registered: Any) -> None:
    roster = Roster(strangers=True)
    assert look(roster, registered([[], ["b"]], ["a", "b"])) == ["b"]


def test_the_file_says_whom_a_key_may_speak_for_whatever_its_name(
    registered: Any, log: pytest.LogCaptureFixture
) -> None:
    devices = {
        "one": Member(KEYS[0], ("a", "b")),
        "two": Member(KEYS[1], ("c",)),
        "three": Member(KEYS[2], ("d",)),
    }
    roster = Roster(strangers=True, claims=Claims(Federation(devices), devices=True))
    # The third answers with what the first has answered; the fourth is a sybil under a good name.
    grid = registered([["b"], ["c"], ["b"], ["d"]], ["x", "y", "z", "d"])
    assert look(roster, grid) == ["b", "c"]
    assert "it claims client 'b', and the key of 'three' names no such client" in log.text
    assert "its key is in no line of the federation's file" in log.text


def test_a_node_that_lets_go_of_its_message_early_costs_itself(
    registered: Any, log: pytest.LogCaptureFixture
) -> None:
    """By a call that it may make; the push of its message then fails in the server's hands."""
    grid, roster = registered([["a"], ["b"], ["c"]], ["a", "b", "c"]), Roster(strangers=True)
    push = grid.push_messages

    def push_messages(messages: Any) -> Any:
        if grid.node_id(1) in [message.metadata.dst_node_id for message in messages]:
            raise ObjectPushError("an object", 1, "a session")
        return push(messages)

    grid.push_messages = push_messages
    assert look(roster, grid) == ["a", "c"]
    assert f"node {grid.node_id(1)} let go of a message" in log.text


def test_in_a_simulation_there_are_no_keys(nodes: Any, registered: Any) -> None:
    assert look(Roster(), nodes([["a"], ["b"]])) == ["a", "b"]
    assert look(Roster(), registered([["a"], ["b"]], ["", ""])) == ["a", "b"]
    assert look(Roster(strangers=True), nodes([["a"]])) == ["a"]  # in one process, as in tests


def test_the_setting(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text("devices: {}")
    file = f"federation={tmp_path / 'federation.yaml'}"
    assert claims_of(load_config(None, [])).devices is False
    devices = "data.partition.name=devices"
    assert claims_of(load_config(None, [devices])).devices is True
    assert claims_of(load_config(None, [devices, file])).federation == Federation({})
    with pytest.raises(ConfigError, match="takes null where nodes are no devices"):
        claims_of(load_config(None, [file]))
    with pytest.raises(ConfigError, match="No such file"):
        claims_of(load_config(None, [devices, "federation=none.yaml"]))
