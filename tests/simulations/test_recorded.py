"""Everything that leaves the devices of a private run, recorded byte by byte as Flower sends it.

The run has clients that fail with their data in the error, huge values, labels nobody told of, and
a plug-in that hands out more than it may. Nothing leaves but declared fields.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from owner import allowing, permit_in

from fedpers.config import load_config
from fedpers.errors import FedpersError
from simulations.backends.serial import SerialGrid, run_serial

SECRET = "Jane-Doe-HIV-positive"
NUMBER = 0.7234567  # in the rows of all devices
CLIENTS = ("well", "odd", "raises", "hands-out", "late")

PLUGIN = f"""
from clients.methods.fedavg import FedAvg
from strategies.base import PersonalizedStrategy


class Leaky(FedAvg):
    accounted = True

    def prepare(self, working, trainer):
        if trainer.client == "raises":
            raise RuntimeError(f"{SECRET} has {{trainer.examples.x[0].tolist()}}")
        return working

    def conclude(self, working, trainer):
        if trainer.client == "late" and trainer.server_round == 2:
            raise ValueError(f"{SECRET} has {{trainer.examples.x[0].tolist()}}")
        trainer.noise["{SECRET}"] = float(trainer.examples.x.mean())
        if trainer.client == "hands-out":
            own = working["head"].like(trainer.examples.x.reshape(-1)[0].expand(39))
            return working | {{"{SECRET}": own}}
        return working

    def upload(self, working):
        more = [name for name in working if name == "{SECRET}"]
        return working.only(["head", "body", *more])


class Open(PersonalizedStrategy):
    algorithm = "MODULE:Leaky"
"""


class Sent(NamedTuple):
    """One reply, as bytes and as what they say."""

    node: int
    kind: str
    raw: bytes
    message: Message


class Recorder(SerialGrid):
    """Nodes that are devices, and what leaves them."""

    sent: list[Sent]

    def _answer(self, message: Message) -> Message:
        reply = super()._answer(message)
        node = message.metadata.dst_node_id
        self.sent.append(
            Sent(node, message.metadata.message_type, on_the_wire(copy.deepcopy(reply)), reply)
        )
        return reply


def on_the_wire(reply: Message) -> bytes:
    """All that Flower pushes of a reply: the message without its content, and each object in it."""
    head = message_to_proto(remove_content_from_message(reply)).SerializeToString()
    return b"".join([head, *(one.deflate() for one in get_all_nested_objects(reply).values())])


class Ran(NamedTuple):
    """A run of devices: what left them, by client, and what was kept."""

    sent: list[Sent]
    folder: Path
    homes: dict[str, Path]
    lines: list[str]
    error: str

    def replies(self, client: str) -> dict[str, list[Message]]:
        """A client's replies, by kind of message."""
        found: dict[str, list[Message]] = {}
        for one in self.sent:
            if one.node == 2 + list(self.homes).index(client):
                found.setdefault(one.kind, []).append(one.message)
        return found


Go = Callable[..., Ran]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Go]:
    """``go("odd", ..., settings=[...])``: a private run on these devices, in this process."""
    module = f"leaky_{tmp_path.name.replace('-', '_')}"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{module}.py").write_text(PLUGIN.replace("MODULE", module))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "public.npz", x=rng.standard_normal((60, 6)), y=np.arange(60) % 3)

    def run(*clients: str, settings: tuple[str, ...] = ()) -> Ran:
        config = load_config(
            None,
            [
                *("data.name=npz", f"data.path={tmp_path / 'public.npz'}", "model.name=mlp"),
                *("data.partition.name=devices", "data.columns.classes=3", "rounds=2"),
                "data.scale=none",  # what is looked for must be what the method has in hand
                *(
                    f"strategy.name={module}:Open",
                    "strategy.min_clients=1",
                    "training.fold=1",
                    "model.cache=false",
                ),
                *("privacy.enabled=true", "privacy.delta=1e-3", "privacy.lr=0.5"),
                *("privacy.weights=uniform", f"simulation.nodes={len(clients)}", *settings),
            ],
        )
        assert config.evaluation.diagnostics is False  # by default, on devices
        config.permit = str(permit_in(tmp_path / "permit.json", config))
        policy = allowing(tmp_path / "policy.yaml", config, f"{module}:Leaky")
        homes = {client: tmp_path / f"state-{SECRET}-{client}" for client in clients}
        sent, lines = list[Sent](), list[str]()

        def grid(*args: Any, **kwargs: Any) -> Recorder:
            made = Recorder(*args, **kwargs)
            made.sent = sent
            for context, client in zip(made._contexts.values(), clients, strict=False):
                data = file_of(tmp_path, client)
                described = {"client-id": client, "data": str(data), "state": str(homes[client])}
                described["policy"] = str(policy)
                if config.encryption.enabled:
                    described["keys"] = f"{config.encryption.keys}-{client}"
                context.node_config = described
            made._contexts = dict(list(made._contexts.items())[: len(clients)])
            return made

        folder, error = tmp_path / "run", ""
        try:
            run_serial(config, folder, make_grid=grid, show=lines.append)
        except FedpersError as raised:
            error = str(raised)
        return Ran(sent, folder, homes, lines, error)

    yield run


def file_of(folder: Path, client: str) -> Path:
    """A device's rows: tabular, of three classes; NUMBER is in each of them."""
    rng, path = np.random.default_rng(len(client)), folder / f"{SECRET}-{client}.npz"
    y = np.arange(40) % 3
    x = (np.eye(3, 6)[y] + 0.3 * rng.standard_normal((40, 6))).astype(np.float32)
    x[:, 5] = NUMBER
    labels: Any = y
    if client == "odd":
        x[::7, 0], x[3, 1], x[4, 2] = 3e38, float("nan"), float("-inf")
    if client == "mislabelled":
        labels = np.where(y == 2, SECRET, y.astype(str))
    np.savez(path, x=x, y=labels)
    if client == "torn":
        path.write_bytes(path.read_bytes()[:-200])
    return path


def check_secrets(sent: list[Sent]) -> None:
    """No name, number or path of a device's is in the bytes; nor are its rows."""
    for one in sent:
        assert SECRET.encode() not in one.raw and b"Jane" not in one.raw, one
        assert b"0.72345" not in one.raw and b".npz" not in one.raw, one
        for kind in ("<f4", ">f4", "<f8", ">f8"):  # twice in a row: once may be chance
            assert np.array([NUMBER] * 2, dtype=kind).tobytes() not in one.raw, one
        assert b"3e+38" not in one.raw and b"Traceback" not in one.raw and b"Error" not in one.raw


# Written out here once more, by hand: what a private device may say, without diagnostics.
NUMBERS = {"epsilon", "delta", "sigma", "mu"}


def check_declared(one: Sent) -> None:
    """A reply holds declared records, fields and words, and nothing else."""
    reply = one.message
    if reply.has_error():
        assert reply.error.reason == "failed"
        return
    content = reply.content
    assert set(content.keys()) == {"parts", "message"}
    config = content.config_records["message"]
    assert set(config) <= {"layouts", "rows", "opaque", "body"}
    if "layouts" in config:
        layouts = json.loads(str(config["layouts"]))
        assert list(layouts) in (["body", "head"], [])
        shapes = [name for layout in layouts.values() for name, _ in layout["shapes"]]
        assert all(name.startswith(("trunk.", "head.")) for name in shapes)
    body = json.loads(str(config["body"]))
    if one.kind == "query.roster":
        if "refused" in body:
            assert body in ({"refused": "data"}, {"refused": "key"}, {"refused": "failed"})
        elif "needs" in body:
            assert body == {"needs": "base"}
        else:
            assert set(body) <= {"clients", "held_out", "nodes", "scored", "channel"}
            assert body["clients"][0] in CLIENTS and body["nodes"] == 1 and body["held_out"] == []
            assert body["scored"] == "after combining"
            assert set(body.get("channel", {})) <= {"id", "identities"}
    elif one.kind in ("train", "query.channel"):
        assert set(body) <= {"reports", "failures", "spent", "opens", "encrypt", "decrypt"}
        assert set(body.get("failures", {}).values()) <= {"failed", "spent"}
        assert body["encrypt"] in (0, 1, 2, 4) and body["decrypt"] in (0, 1, 2, 4)
        for report in body.get("reports", {}).values():
            assert set(report) <= {"examples", "loss", "noise", *NUMBERS}
            assert report["loss"] is None and report["examples"] == 1
            assert set(report.get("noise", {})) <= {"body", "head"}
            numbers = [
                *report.get("noise", {}).values(),
                *(report[n] for n in NUMBERS & set(report)),
            ]
            assert all(type(number) is float for number in numbers)
    elif one.kind == "evaluate":
        assert body == {"results": [], "held_back": True, "failures": {}}
    else:
        assert one.kind in ("train.baseline", "query.export"), one.kind
        assert body == {"failures": {}}


def test_nothing_but_declared_fields_leaves_a_device(go: Go, undeclared: list[str]) -> None:
    ran = go(*CLIENTS)
    assert ran.error == ""
    check_secrets(ran.sent)
    for one in ran.sent:
        check_declared(one)
    # It is the run that it should be: all kinds of messages, and clients that failed.
    kinds = {one.kind for one in ran.sent}
    assert kinds == {"query.roster", "train", "train.baseline", "evaluate", "query.export"}
    rounds = [json.loads(x) for x in (ran.folder / "rounds.jsonl").read_text().splitlines()]
    failed = "it failed; failures.log in the state folder there says why"
    assert all(rounds[k]["failed"]["raises"] == failed for k in (0, 1))
    assert all(rounds[k]["failed"]["hands-out"] == failed for k in (0, 1))
    assert rounds[1]["failed"]["late"] == failed
    assert [line["answered"] for line in rounds] == [3, 2]  # well, odd and at first late
    # Without a device's word the reason is found: it is where the server says.
    for client in ("raises", "late"):
        told = (ran.homes[client] / "failures.log").read_text()
        assert SECRET in told and "0.72345" in told and "Traceback" in told
        assert (ran.homes[client] / "failures.log").stat().st_mode & 0o777 == 0o600
    assert not (ran.homes["well"] / "failures.log").exists()
    # What the plug-in put beside its noise stayed there, and the log of the node named it.
    assert {name.split(".")[-1] for name in undeclared} <= {SECRET}
    undeclared.clear()
    # The server's own files know no more than was sent.
    for path in ran.folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_nor_under_encryption(go: Go, undeclared: list[str], tmp_path: Path) -> None:
    from fedpers.channels.identity.home import deal_identities, new_identity
    from fedpers.channels.sealed.keys import deal_keys

    homes = {name: tmp_path / f"keys-{name}" for name in ("well", "raises", "hands-out")}
    deal_keys("bfv", 3, False, tmp_path / "keys", [*homes.values()])
    deal_identities(new_identity, tmp_path / "keys", homes)
    shutil.copy2(homes["well"] / "client.key", tmp_path / "keys")  # for the check before the run
    sealed = ("encryption.enabled=true", f"encryption.keys={tmp_path / 'keys'}", "rounds=1")
    ran = go("well", "raises", "hands-out", settings=sealed)
    undeclared.clear()
    assert ran.error == ""
    check_secrets(ran.sent)
    for one in ran.sent:
        check_declared(one)
    (answer,) = ran.replies("well")["train"]
    assert answer.content.config_records["message"]["opaque"] == 1


def test_nor_where_clients_are_the_unit(go: Go, undeclared: list[str]) -> None:
    unit = ("privacy.unit=client", "privacy.lr=null", "rounds=1")
    ran = go("well", "raises", settings=unit)
    assert ran.error == ""
    check_secrets(ran.sent)
    for one in ran.sent:
        check_declared(one)
    (answer,) = ran.replies("well")["train"]
    body = json.loads(str(answer.content.config_records["message"]["body"]))
    assert body["reports"] == {"well": {"examples": 1, "loss": None}}


@pytest.mark.parametrize("client", ["mislabelled", "torn"])
def test_data_that_cannot_be_used_are_one_word(go: Go, client: str) -> None:
    ran = go("well", client)
    check_secrets(ran.sent)
    for one in ran.sent:
        check_declared(one)
    (answer,) = ran.replies(client)["query.roster"][-1:]
    assert json.loads(str(answer.content.config_records["message"]["body"])) == {"refused": "data"}
    why = "the data there cannot be used; failures.log in the state folder there says why"
    assert ran.error == "" and any(why in line for line in ran.lines)  # the others go on
    told = (ran.homes[client] / "failures.log").read_text()
    assert f"{SECRET}-{client}.npz" in told


def test_a_file_that_is_gone_in_mid_run_is_one_word(go: Go, tmp_path: Path) -> None:
    gone = tmp_path / f"{SECRET}-well.npz"

    class Removes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "clients; shared scalars" in record.getMessage():
                gone.unlink()

    handler = Removes()
    logging.getLogger("fedpers").addHandler(handler)
    try:
        ran = go("late", "well", settings=("strategy.min_clients=1",))
    finally:
        logging.getLogger("fedpers").removeHandler(handler)
    check_secrets(ran.sent)
    (answer,) = ran.replies("well")["train"][:1]
    assert answer.has_error() and answer.error.reason == "failed"
    assert f"{SECRET}-well.npz" in (ran.homes["well"] / "failures.log").read_text()
