"""Whose a device's state folder is, and a ledger that is not what it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from owner import allowing, permitted

from clients.node.client_app import app
from clients.node.device import Device
from clients.node.host import ClientHost
from clients.node.keeper import keeper_of
from fedpers.config import Config
from fedpers.data import Schema, Signature
from fedpers.errors import ClientError
from fedpers.failures import FAILED
from fedpers.parts import Parts
from fedpers.privacy import Ledger
from fedpers.records import pack, unpack
from fedpers.tasks import Classification
from simulations.backends.serial import SerialGrid, _identity

PRIVATE = ["privacy.enabled=true", "privacy.lr=0.5", "privacy.epsilon=4", "privacy.delta=1e-3"]
SCHEMA = Schema(Signature("tabular", (6,)), Classification.numbered(3).settings())
Host = Callable[..., ClientHost]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 6)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 2)
    return Device("clinic/7", tmp_path / "own.npz", tmp_path / "state")


@pytest.fixture
def host(small: Callable[..., Config], device: Device) -> Host:
    """``host(device)``: a private host, as a process makes it that was started anew."""

    def make(device: Device = device, run: str = "a") -> ClientHost:
        config = small("fedavg", *PRIVATE)
        stores = device.state / "runs" / run / "state"
        return ClientHost(config, "fedavg", (), stores, device, None, SCHEMA)

    return make


def released(host: ClientHost, server_round: int = 1) -> None:
    start = host.algorithm.initial.only(host.algorithm.sends)
    host.train(host.hosted[0], server_round, start)


def ledger_of(device: Device) -> Path:
    (path,) = device.state.glob("ledgers/*.json")
    return path


# -- the folder ----------------------------------------------------------------------------------


def test_the_folder_is_its_first_clients(host: Host, device: Device) -> None:
    assert not device.claimed()
    host()
    assert device.claimed() and host().hosted == ["clinic/7"]
    other = replace(device, client="clinic/8")
    line = (
        rf"^state: {device.state} belongs to client 'clinic/7', and this is client 'clinic/8'; "
        "give each client a state folder of its own$"
    )
    before = {path: path.read_bytes() for path in device.state.rglob("*") if path.is_file()}
    for act in (other.claim, other.claimed, lambda: host(other)):
        with pytest.raises(ClientError, match=line):
            act()
    with pytest.raises(ClientError, match=line):
        keeper_of(Config().to_json(), "fedavg", "/server/runs/a", other)
    assert {p: p.read_bytes() for p in device.state.rglob("*") if p.is_file()} == before


def test_a_link_to_anothers_folder_is_anothers_folder(host: Host, device: Device) -> None:
    host()
    link = device.state.with_name("link")
    link.symlink_to(device.state)
    with pytest.raises(ClientError, match=r"give each client a state folder of its own$"):
        host(replace(device, client="b", state=link))
    assert host(replace(device, state=link)).hosted == ["clinic/7"]  # its own, by another way


def test_a_folder_of_an_earlier_version_is_whose_ledger_it_holds(device: Device) -> None:
    Ledger(device.state / "ledgers" / "clinic%2F7.json").charge([])
    with pytest.raises(ClientError, match=r"belongs to client 'clinic/7', and this is client 'b'"):
        replace(device, client="b").claim()
    device.claim()
    assert json.loads((device.state / "owner.json").read_text()) == {"client": "clinic/7"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00" * 20])
def test_an_owner_that_cannot_be_read_is_no_invitation(device: Device, text: str) -> None:
    device.claim()
    (device.state / "owner.json").write_text(text)
    for client in ("clinic/7", "b"):
        with pytest.raises(ClientError, match=r"owner\.json cannot be read .*; restore it from"):
            replace(device, client=client).claim()


def test_a_link_for_an_owner_is_none(device: Device, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"client": "b"}')
    device.state.mkdir()
    (device.state / "owner.json").symlink_to(tmp_path / "mine.json")
    with pytest.raises(ClientError, match=r"cannot be read \(it is a link\)"):
        replace(device, client="b").claim()


def test_of_two_processes_that_claim_a_folder_one_has_it(device: Device) -> None:
    for attempt in range(10):
        state, children = device.state / str(attempt), []
        for client in "abc":
            child = os.fork()
            if child == 0:
                try:
                    replace(device, client=client, state=state).claim()
                except ClientError:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 1, 1]
        owner = json.loads((state / "owner.json").read_text())["client"]
        assert codes["abc".index(owner)] == 0


def test_the_roster_of_another_client_is_refused_and_keeps_nothing(
    small: Callable[..., Config], device: Device, tmp_path: Path
) -> None:
    device.claim()
    config, grid = small("fedavg", *PRIVATE), SerialGrid(app, nodes=1)
    (node,) = grid.get_node_ids()
    described = {"client-id": "b", "data": str(device.data), "state": str(device.state)}
    described["policy"] = str(allowing(tmp_path / "policy.yaml", config, "fedavg"))
    grid._contexts[node].node_config.update(described)
    head: dict[str, Any] = {"settings": config.to_json(), "run_folder": "/server/runs/a"}
    head |= {"algorithm": "fedavg", "server_params": [], "base": "d" * 64}
    head["permit"] = permitted(config, "fedavg")
    content = pack([Parts()], {**head, "schema": SCHEMA.to_json()})
    with _identity(run_id=1):
        reply = grid._answer(Message(content, dst_node_id=node, message_type="query.roster"))
    assert unpack(reply.content)[1] == {"refused": FAILED}  # no path, no other's name
    assert not (device.state / "base").exists()
    assert (
        "give each client a state folder of its own" in (device.state / "failures.log").read_text()
    )


# -- the ledger ----------------------------------------------------------------------------------


def refused(host: Host, why: str) -> None:
    """Nothing more is released, in a new process too, and nothing is put in the ledger's place."""
    state = host().device.state  # type: ignore[union-attr]
    before = {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in (state / "ledgers").glob("*.json")
    }
    for run in "ab":
        line = rf"^ledger: \S+\.json {why}; restore it from a backup: what it held was released and"
        with pytest.raises(ClientError, match=line) as found:
            released(host(run=run), 3)
        assert "\n" not in str(found.value)
    assert before == {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in (state / "ledgers").glob("*.json")
    }


def test_a_ledger_that_is_gone_is_no_fresh_start(host: Host, device: Device) -> None:
    released(host())
    ledger_of(device).unlink()
    refused(host, "is gone")
    shutil.rmtree(device.state / "ledgers")
    (device.state / "ledgers").mkdir()
    refused(host, "is gone")


def test_a_ledger_under_another_name_is_gone(host: Host, device: Device) -> None:
    released(host())
    ledger_of(device).rename(device.state / "ledgers" / "other.json")
    refused(host, "is gone")
    (device.state / "ledgers" / "other.json").rename(device.state / "ledgers" / "clinic%2F7.json")
    released(host(), 2)  # it is back


def test_an_older_ledger_is_no_ledger(host: Host, device: Device) -> None:
    released(host())
    backup = ledger_of(device).read_bytes()
    released(host(), 2)
    ledger_of(device).write_bytes(backup)
    refused(host, r"is older than what was released \(1 of 2 charges\)")


def test_anothers_ledger_is_no_ledger(host: Host, device: Device) -> None:
    released(host())
    other = replace(device, client="b", state=device.state.with_name("b"))
    released(host(other))
    shutil.copy(ledger_of(other), ledger_of(device))
    refused(host, "is not the ledger that was kept here")
    # Nor is one that was written by hand, or by an earlier version.
    ledger_of(device).write_text('{"releases": []}')
    refused(host, "is not the ledger that was kept here")


@pytest.mark.parametrize("target", ["nowhere", "/dev/null", "copy"])
def test_a_link_is_no_ledger(host: Host, device: Device, target: str, tmp_path: Path) -> None:
    released(host())
    path = ledger_of(device)
    copy = tmp_path / "copy"
    path.rename(copy)
    path.symlink_to(copy if target == "copy" else target)
    refused(host, r"cannot be read \(it is a link\)")


def test_nor_is_a_pipe_or_a_folder(host: Host, device: Device) -> None:
    released(host())
    path = ledger_of(device)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ClientError, match=r"cannot be read \(it is no plain file\)"):
        released(host(), 2)
    path.unlink()
    path.mkdir()
    with pytest.raises(ClientError, match=r"cannot be read \(it is no plain file\)"):
        released(host(), 2)


def test_a_ledger_without_a_receipt_gets_one(host: Host, device: Device) -> None:
    # As a crash between the two leaves it, or an earlier version; it holds all that was released.
    released(host())
    (receipt,) = device.state.glob("accounts/*.json")
    receipt.unlink()
    released(host(), 2)
    assert json.loads(receipt.read_text())["charges"] == 2
    ledger_of(device).unlink()
    refused(host, "is gone")


def test_a_receipt_that_cannot_be_read_is_named(host: Host, device: Device) -> None:
    released(host())
    (receipt,) = device.state.glob("accounts/*.json")
    receipt.write_text("{")
    with pytest.raises(ClientError, match=rf"^ledger: {receipt} cannot be read .*; restore it"):
        released(host(), 2)


def test_what_cannot_be_seen(host: Host, device: Device) -> None:
    """A whole folder from an older backup, or a removed one, looks like what it is a copy of."""
    released(host())
    shutil.copytree(device.state, device.state.with_name("backup"))
    released(host(), 2)
    shutil.rmtree(device.state)
    device.state.with_name("backup").rename(device.state)
    released(host(), 2)
    shutil.rmtree(device.state)
    released(host(), 3)
    assert sum(r.steps for r in Ledger(ledger_of(device)).releases) == 1
