"""A device: its description, its disk, its account."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from owner import allowing, permitted

from clients.methods.fedavg import FedAvg
from clients.node.client_app import app
from clients.node.device import Device
from clients.node.host import ClientHost
from clients.node.keeper import Keeper, stores_of
from clients.node.store import ClientStore
from fedpers.channels.identity.home import deal_identities, new_identity
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.config import Config
from fedpers.data import Schema, Signature
from fedpers.errors import ClientError, ConfigError
from fedpers.models.base_state import read_base
from fedpers.parts import Part, Parts
from fedpers.privacy import Ledger
from fedpers.privacy.noise import secret
from fedpers.records import pack, unpack
from fedpers.tasks import Classification
from simulations.backends.serial import SerialGrid, _identity

PRIVATE = ["privacy.enabled=true", "privacy.lr=0.5", "privacy.epsilon=4", "privacy.delta=1e-3"]
SCHEMA = Schema(Signature("tabular", (6,)), Classification.numbered(3).settings())


# -- what the node config says -------------------------------------------------------------------


def test_a_node_without_a_client_id_is_a_node_of_a_simulation() -> None:
    assert Device.of({"partition-id": 0, "num-partitions": 3}) is None
    assert Device.of({"data": "x.npz", "client-id": ""}) is None


def test_a_device_is_described_by_its_node_config() -> None:
    given = {"client-id": 7, "data": "/data/x.npz", "state": "/state"}
    assert Device.of(given) == Device("7", Path("/data/x.npz"), Path("/state"), None, None)
    found = Device.of({**given, "keys": "/keys", "policy": "/policy.yaml", "name": "clinic"})
    assert found is not None
    assert (found.keys, found.policy) == (Path("/keys"), Path("/policy.yaml"))


@pytest.mark.parametrize("missing", ["data", "state"])
def test_a_part_that_is_missing_is_named(missing: str) -> None:
    given = {"client-id": "7", "data": "/data/x.npz", "state": "/state"}
    del given[missing]
    line = rf"^{missing} \(node config\): got None, takes --node-config '.* {missing}=\"\.\.\.\"'$"
    with pytest.raises(ConfigError, match=line):
        Device.of(given)


# -- the base ------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Device:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 6)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 2)
    return Device("clinic/7", tmp_path / "own.npz", tmp_path / "state")


def test_the_base_is_kept_and_asked_for_again_when_it_is_damaged(device: Device) -> None:
    base = Parts({"base": Part.of({"w": torch.arange(5.0)})})
    assert not device.base(base.digest())
    device.keep_base(base)
    assert device.base(base.digest()).digest() == base.digest()
    assert not device.base("another")
    (file,) = device.state.glob("base/*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    assert not device.base(base.digest())
    device.keep_base(base)
    assert device.base(base.digest()).digest() == base.digest()


def test_what_a_server_names_leads_out_of_no_folder(device: Device, tmp_path: Path) -> None:
    secret = Parts({"base": Part.of({"w": torch.ones(2)})})
    secret.save(tmp_path / "secret.safetensors")
    assert not device.base("../../secret")


# -- a client on a device ------------------------------------------------------------------------


@pytest.fixture
def host(small: Callable[..., Config], device: Device, tmp_path: Path) -> Callable[..., ClientHost]:
    """``host("perada", ..., run="a")``: the device's host in a run."""

    def make(name: str, *overrides: str, run: str = "a") -> ClientHost:
        config = small(name, *overrides)
        stores = device.state / "runs" / run / "state"
        return ClientHost(config, name, ("distill",), stores, device, None, SCHEMA)

    return make


def start_of(host: ClientHost) -> Parts:
    return host.algorithm.initial.only(host.algorithm.sends)


def test_a_device_hosts_its_one_client(host: Callable[..., ClientHost], tmp_path: Path) -> None:
    node = host("ditto")
    assert node.data.clients == ["clinic/7"] and node.data.schema == SCHEMA
    upload, report = node.train("clinic/7", 1, start_of(node))
    assert report["examples"] == 24 and list(upload) == ["body", "head"]


def test_the_base_makes_the_servers_model_on_the_device(
    small: Callable[..., Config], device: Device, host: Callable[..., ClientHost]
) -> None:
    settings = ["model.pretrain.task=clusters", "model.pretrain.clusters=4", "model.lora=null"]
    simulated = ClientHost(
        small("ditto", *settings, "data.public_fraction=0.2"), "ditto", (), device.state / "sim"
    )
    base = read_base(simulated.model)
    device.keep_base(base)
    config = small("ditto", *settings)
    stores = device.state / "runs" / "a" / "state"
    node = ClientHost(config, "ditto", (), stores, device, base.digest(), SCHEMA)
    assert read_base(node.model).digest() == base.digest()
    # Where a personal model starts, too.
    assert node.algorithm.initial.digest() == simulated.algorithm.initial.digest()


def test_a_device_draws_no_noise_that_the_server_knows(host: Callable[..., ClientHost]) -> None:
    line = r"^privacy\.deterministic_for_tests: got True, takes false on a device, whose noise"
    with pytest.raises(ConfigError, match=line):
        host("fedavg", *PRIVATE, "privacy.deterministic_for_tests=true")
    assert host("fedavg", *PRIVATE).sources is secret


def test_the_ledger_is_the_clients_whatever_its_data(
    host: Callable[..., ClientHost], device: Device
) -> None:
    node = host("perada", *PRIVATE, "strategy.params.distill=false")
    node.train("clinic/7", 1, start_of(node))
    (file,) = device.state.glob("ledgers/*.json")
    assert file.name == "clinic%2F7.json"
    (first,) = Ledger(file).releases
    spent = Ledger(file).epsilon(1e-3)
    # The data have grown; what was released of the old ones stays released.
    x = np.random.default_rng(2).standard_normal((60, 6)).astype(np.float32)
    np.savez(device.data, x=x, y=np.arange(60) % 3)
    later = host("perada", *PRIVATE, "strategy.params.distill=false", run="b")
    later.train("clinic/7", 1, start_of(later))
    assert list(device.state.glob("ledgers/*.json")) == [file]
    assert first in Ledger(file).releases and len(Ledger(file).releases) == 2
    assert spent < Ledger(file).epsilon(1e-3) <= 4


def test_a_ledger_that_cannot_be_read_is_a_refusal(
    host: Callable[..., ClientHost], device: Device
) -> None:
    node = host("perada", *PRIVATE, "strategy.params.distill=false")
    node.train("clinic/7", 1, start_of(node))
    (file,) = device.state.glob("ledgers/*.json")
    file.write_text(file.read_text()[:-2])
    torn = file.read_text()
    again = host("perada", *PRIVATE, "strategy.params.distill=false")  # as after a restart
    with pytest.raises(
        ClientError, match=r"^ledger: .* cannot be read .* restore it from a backup"
    ):
        again.train("clinic/7", 2, start_of(again))
    assert file.read_text() == torn  # and no fresh one


def test_what_a_device_keeps_is_on_its_disk_and_its_own(
    host: Callable[..., ClientHost], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append(("flush", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def noted_replace(source: Any, target: Any) -> None:
        events.append(("replace", str(target)))
        events.append(("source", str(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    before = os.umask(0)
    try:
        node = host("perada", *PRIVATE, "strategy.params.distill=false")
        node.train("clinic/7", 1, start_of(node))
        node.evaluate("clinic/7", 1, start_of(node))
    finally:
        os.umask(before)
    files = [path for path in device.state.rglob("*") if path.is_file()]
    assert {f.name for f in files} >= {"personal-1.safetensors", "answer.json", "clinic%2F7.json"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        if path.suffix == ".lock":
            continue
        # The new file is flushed before it takes the name, its folder after.
        at = max(k for k, event in enumerate(events) if event == ("replace", str(path)))
        source = events[at + 1][1]
        assert ("flush", source) in events[:at], path
        assert ("flush", str(path.parent)) in events[at:], path
    folders = {path for path in device.state.rglob("*") if path.is_dir()}
    own = [path for path in folders if any(child.is_file() for child in path.iterdir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in own} == {0o700}


def test_in_a_simulation_nothing_is_flushed(
    small: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.node.store.flush", lambda path: pytest.fail(f"{path} is flushed"))
    node = ClientHost(small("ditto"), "ditto", (), tmp_path / "state")
    node.train("0", 1, start_of(node))
    assert ClientStore(node.stores, "0").load_round("personal", 1)


# -- what needs no model -------------------------------------------------------------------------


def test_a_device_seals_and_opens_without_its_data_or_model(
    small: Callable[..., Config], device: Device, tmp_path: Path
) -> None:
    from fedpers.channels.sealed import load_client, new_keys
    from fedpers.channels.sealed.keys import CLIENT_FILE

    new_keys(tmp_path / "keys", "auto", 2)
    deal_identities(new_identity, tmp_path / "server", {device.client: tmp_path / "keys"})
    config = small("fedavg", "encryption.enabled=true")
    held = Parts({"body": Part.of({"w": torch.tensor([1.0, -2.0, 0.5])})})
    device = replace(device, keys=tmp_path / "keys")
    stores = stores_of("/server/runs/a", device)
    assert stores == device.state / "runs" / "a" / "state"
    Keeper(config, stores, device, 1, FedAvg).hold(device.client, 3, held)
    device.data.unlink()  # a host could not be made any more
    grid = SerialGrid(app, nodes=1)
    (node,) = grid.get_node_ids()
    described = {"client-id": device.client, "data": str(device.data), "state": str(device.state)}
    described["policy"] = str(allowing(tmp_path / "policy.yaml", config, "fedavg"))
    grid._contexts[node].node_config.update({**described, "keys": str(device.keys)})

    permit = permitted(config, "fedavg")

    def ask(kind: str, rows: list[Any], **body: Any) -> tuple[list[Any], dict[str, Any]]:
        head: dict[str, Any] = {
            "settings": config.to_json(),
            "run_folder": "/server/runs/a",
            "round": 3,
        }
        head |= {"algorithm": "fedavg", "server_params": []}
        head["permit"] = permit
        content = pack(rows, {**head, "kind": kind, "clients": [device.client], **body})
        (reply,) = grid.send_and_receive(
            [Message(content, dst_node_id=node, message_type="query.channel")]
        )
        return unpack(reply.content)

    with _identity(run_id=1):
        terms = {"groups": [[["body"], False]], "mixes_rows": False}
        sealed, answer = ask("seal", [], channel=terms, weights={device.client: 0.5})
        assert answer["failures"] == {} and isinstance(sealed[0], SealedParts)
        (word,) = sealed[0].terms[0]
        assert (word.statement.client, word.statement.weight) == (device.client, 0.5)
        opened = load_client(tmp_path / "keys" / CLIENT_FILE).open(sealed[0].sealed[0])
        torch.testing.assert_close(opened, 0.5 * held["body"].vector, atol=1e-3, rtol=0)
        # For a server it opens nothing: the method has no use for a mean in the clear.
        mean = {"parts": ["body"], "clients": [device.client, "b"], "sum": "x"}
        answered, told = ask("agree", [], channel={}, mean=mean)
        assert answered == [] and list(told["failures"]) == [device.client]
