"""What a node answers, asked over a grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from clients.node.client_app import app
from clients.node.store import ClientStore
from fedpers.config import Config
from fedpers.data import Schema, Signature, load_data
from fedpers.models import build_model
from fedpers.parts import Parts
from fedpers.records import pack, unpack
from fedpers.tasks import Classification
from simulations.backends.serial import SerialGrid, _identity

Ask = Callable[..., tuple[list[Parts], dict[str, Any]]]

SCHEMA = Schema(Signature("image", (1, 8, 8)), Classification.numbered(10).settings())


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """``ask(config, "train", parts, clients=...)`` sends one message to the first of two nodes."""

    def ask(
        config: Config, kind: str, parts: list[Parts] | None = None, node: int = 0, **body: Any
    ) -> tuple[list[Parts], dict[str, Any]]:
        grid = SerialGrid(app, nodes=2)
        head = {
            "settings": config.to_json(),
            "algorithm": config.strategy.name,
            "server_params": [],
            "run_folder": str(tmp_path / "run"),
            "base": None,
            "schema": SCHEMA.to_json(),  # for devices; these nodes have their own
            "round": 1,
        }
        content = pack(parts or [], {**head, **body})
        nodes = list(grid.get_node_ids())
        message = Message(content, dst_node_id=nodes[node], message_type=kind)
        (reply,) = grid.send_and_receive([message])
        return unpack(reply.content)

    with _identity(run_id=1):
        yield ask


def start_of(config: Config) -> Parts:
    model = build_model(config, load_data(config))
    return Parts({slot: model.read(slot) for slot in ("body", "head")})


def test_the_nodes_share_the_clients_among_them(ask: Ask, small: Callable[..., Config]) -> None:
    answers = [ask(small("ditto"), "query.roster", node=node)[1] for node in (0, 1)]
    # Training examples 12, 8, 4, 0: "0" to node 0, "1" and then "2" to node 1, "3" to node 0.
    assert [answer["clients"] for answer in answers] == [["0", "3"], ["1", "2"]]
    assert [answer["nodes"] for answer in answers] == [2, 2]
    assert answers[0]["scored"] == "after local training"
    assert [answer["held_out"] for answer in answers] == [[], []]
    held_out = small("ditto", "data.holdout_clients=1")
    answers = [ask(held_out, "query.roster", node=node)[1] for node in (0, 1)]
    assert sorted(answers[0]["clients"] + answers[1]["clients"]) == ["0", "1", "2", "3"]
    assert answers[0]["held_out"] + answers[1]["held_out"] == load_data(held_out).held_out


def test_a_node_that_cannot_run_the_method_says_so_in_one_line(
    ask: Ask, small: Callable[..., Config], plugin: Callable[[str, str], str]
) -> None:
    _, answer = ask(small("ditto", "strategy.params.nu=1"), "query.roster")
    assert answer["refused"].startswith("strategy.params.nu: got 1, takes one of: mu, ")
    _, answer = ask(small("ditto", "model.lora.share=a-only"), "query.roster")
    assert answer["refused"].startswith("model.lora.share: got 'a-only', takes ffa or both")
    text = (
        "from clients.methods.fedavg import FedAvg\n"
        "class Odd(FedAvg):\n"
        "    def extend(self, model): raise NameError('no\\nsuch thing')\n"
    )
    _, answer = ask(small(f"{plugin('odd', text)}:Odd"), "query.roster")
    assert answer["refused"] == "NameError: no such thing"


LEAKS = """
from clients.methods.fedavg import FedAvg


class Leaks(FedAvg):
    accounted = True

    def conclude(self, working, trainer):
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-3 * trainer.examples.x.mean())}
"""


def test_a_node_refuses_a_method_that_leaks(
    ask: Ask,
    small: Callable[..., Config],
    plugin: Callable[[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDPERS_CACHE", str(tmp_path / "cache"))
    config = small(f"{plugin('leaky', LEAKS)}:Leaks", "privacy.enabled=true", "model.name=mlp")
    _, answer = ask(config, "query.roster")
    assert "part 'head' moves by" in answer["refused"]
    assert "clients" not in answer


def test_one_client_that_fails_costs_only_itself(ask: Ask, small: Callable[..., Config]) -> None:
    config = small("fedavg")
    clients = ["2", "nobody", "0"]
    rows = dict.fromkeys(clients, 0)
    uploads, answer = ask(config, "train", [start_of(config)], clients=clients, rows=rows)
    assert list(answer["failures"]) == ["nobody"]
    assert answer["failures"]["nobody"].startswith("DataError: client: got 'nobody', takes one of")
    assert {client: report["examples"] for client, report in answer["reports"].items()} == {
        "2": 4,
        "0": 12,
    }
    assert len(uploads) == 2
    # In the order of the clients: each row is that client's alone.
    for k, client in ((0, "2"), (1, "0")):
        again, _ = ask(config, "train", [start_of(config)], clients=[client], rows={client: 0})
        for slot in ("body", "head"):
            assert torch.equal(again[0][slot].vector, uploads[k][slot].vector)
    assert not torch.equal(uploads[0]["head"].vector, uploads[1]["head"].vector)
    results = ask(config, "evaluate", [uploads[1]], clients=clients, rows=rows)[1]
    assert [result["client"] for result in results["results"]] == ["2", "0"]
    assert list(results["failures"]) == ["nobody"]


def test_each_client_gets_the_row_that_is_its_own(ask: Ask, small: Callable[..., Config]) -> None:
    config = small("fedavg", "training.lr=1e-30")  # so small that nothing moves
    start = start_of(config)
    other = Parts({slot: part.like(part.vector + 1) for slot, part in start.items()})
    rows = {"0": 1, "1": 0, "2": 1}
    uploads, _ = ask(config, "train", [start, other], clients=["0", "1", "2"], rows=rows)
    for upload, sent in zip(uploads, (other, start, other), strict=True):
        torch.testing.assert_close(upload["head"].vector, sent["head"].vector)


def test_baseline_newcomers_and_export(
    ask: Ask, small: Callable[..., Config], tmp_path: Path
) -> None:
    config = small("ditto", "model.lora=null")
    start, rows = start_of(config), {"0": 0, "1": 0}
    _, answer = ask(config, "train.baseline", clients=["0", "1"])
    assert answer["failures"] == {}
    state = tmp_path / "run" / "state"
    assert set(ClientStore(state, "0").load("baseline")) == {"personal.body", "personal.head"}
    _, answer = ask(
        config, "evaluate.newcomers", [start], clients=["0"], rows={"0": 0}, batches=[0, 3]
    )
    found = {int(steps): results for steps, results in answer["results"].items()}
    assert set(found) == {0, 3} and found[0][0]["client"] == "0"
    ask(config, "evaluate", [start], clients=["0", "1"], rows=rows)
    _, answer = ask(
        config,
        "query.export",
        clients=["0", "1", "2"],
        run_folder=str(tmp_path / "run"),
        manifests={client: {"round": 1} for client in "012"},
    )
    # Client 2 has never been evaluated.
    assert list(answer["failures"]) == ["2"]
    folder = tmp_path / "run" / "adapters"
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]
    manifest = json.loads((folder / "1" / "manifest.json").read_text())
    assert (manifest["client"], manifest["round"]) == ("1", 1)
    assert set(manifest) == {"client", "round", "inputs"}  # and what was done to its inputs


CLOSED = ("privacy.enabled=true", "privacy.delta=1e-3", "privacy.lr=0.5")


@pytest.mark.parametrize("closed", [CLOSED, (*CLOSED[:1], "privacy.unit=client")])
def test_under_privacy_a_failure_is_one_word_and_its_reason_stays(
    ask: Ask, small: Callable[..., Config], tmp_path: Path, closed: tuple[str, ...]
) -> None:
    config = small("fedavg", *closed)
    rows = {"2": 0, "nobody": 0}
    uploads, answer = ask(config, "train", [start_of(config)], clients=list(rows), rows=rows)
    assert answer["failures"] == {"nobody": "failed"} and len(uploads) == 1
    log = (tmp_path / "run" / "state" / "failures.log").read_text()
    assert "train of client nobody" in log and "DataError: client: got 'nobody'" in log


def test_under_privacy_no_error_escapes_with_its_text(
    ask: Ask, small: Callable[..., Config], tmp_path: Path
) -> None:
    def reply_to(config: Config, **body: Any) -> Message:
        grid = SerialGrid(app, nodes=1)
        head = {"settings": config.to_json(), "run_folder": str(tmp_path / "run"), **body}
        content = pack([], head)
        nodes = list(grid.get_node_ids())
        message = Message(content, dst_node_id=nodes[0], message_type="train")
        (reply,) = grid.send_and_receive([message])
        return reply

    named = {"algorithm": "fedavg", "server_params": [], "base": None, "round": 1}
    for settings, reason in (((), "<class 'KeyError'>:<''Jane''>"), (CLOSED, "failed")):
        body = {**named, "schema": SCHEMA.to_json(), "clients": ["Jane"], "rows": {}}
        reply = reply_to(small("fedavg", *settings), **body)
        assert reply.has_error() and reply.error.reason == reason
    # Where a message does not say what may be told, nothing is.
    reply = reply_to(small("fedavg"), settings="{'Jane")
    assert reply.has_error() and reply.error.reason == "failed"
