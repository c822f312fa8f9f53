"""The clients of one node, trained and scored in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.node.dealing import deal
from clients.node.exporting import export
from clients.node.host import ClientHost
from clients.node.store import ClientStore
from fedpers.config import Config
from fedpers.errors import ClientError
from fedpers.models import PersonalModel
from fedpers.parts import Parts

sizes = st.dictionaries(st.text(max_size=3), st.integers(0, 500), max_size=30)


@given(sizes, st.integers(1, 8))
def test_every_client_is_dealt_once_and_loads_are_even(sizes: dict[str, int], nodes: int) -> None:
    hands = deal(sizes, nodes)
    assert len(hands) == nodes
    assert sorted(client for hand in hands for client in hand) == sorted(sizes)
    loads = [sum(sizes[client] + 1 for client in hand) for hand in hands]
    # No node is ahead of another by more than the last, smallest client that it got.
    for hand, load in zip(hands, loads, strict=True):
        if hand:
            assert load - (min(sizes[client] for client in hand) + 1) <= min(loads)
    assert deal(dict(sizes), nodes) == hands


def test_the_largest_go_first_to_the_least_loaded() -> None:
    # 9 -> node 0, 5 -> node 1, 4 -> node 1 (6 against 10), 1 -> node 0 (10 against 11).
    assert deal({"a": 1, "b": 5, "c": 9, "d": 4}, 2) == [["c", "a"], ["b", "d"]]
    # Clients without examples cost a little: loads 2 and 1, 2 and 2, 3 and 2, 3 and 3.
    empty = {"a": 1, "b": 0, "c": 0, "d": 0, "e": 0}
    assert deal(empty, 2) == [["a", "d"], ["b", "c", "e"]]
    assert deal({"a": 1}, 3) == [["a"], [], []]


@pytest.fixture
def host(small: Callable[..., Config], tmp_path: Path) -> Callable[..., ClientHost]:
    def make(name: str, *overrides: str, state: str = "state") -> ClientHost:
        return ClientHost(small(name, *overrides), name, (), tmp_path / state)

    return make


def start_of(host: ClientHost) -> Parts:
    return host.algorithm.initial.only(host.algorithm.sends)


def same(a: Parts, b: Parts) -> bool:
    return a.layouts == b.layouts and all(torch.equal(a[n].vector, b[n].vector) for n in a)


def test_an_update_and_its_report(host: Callable[..., ClientHost]) -> None:
    node = host("ditto")
    upload, report = node.train("0", 1, start_of(node))
    assert list(upload) == ["body", "head"] and not same(upload, start_of(node))
    assert report["examples"] == 12
    # Both branches start at a head of zeros: about ln 3.
    assert report["loss"] == pytest.approx(1.0986, abs=0.2)
    upload, report = node.train("3", 1, start_of(node))
    assert report == {"examples": 0, "loss": None}
    assert same(upload, start_of(node))


@pytest.mark.parametrize("name", ["ditto", "fedcp", "fedala"])
def test_neither_order_nor_a_restart_changes_a_bit(
    host: Callable[..., ClientHost], name: str
) -> None:
    first = host(name, state="a")
    uploads = {}
    for server_round in (1, 2):
        for client in ("0", "1"):
            uploads[client], _ = first.train(client, server_round, start_of(first))
    host(name, state="b").train("1", 1, start_of(first))
    host(name, state="b").train("0", 1, start_of(first))
    later = host(name, state="b")
    for client in ("1", "0"):
        upload, _ = later.train(client, 2, start_of(first))
        assert same(upload, uploads[client])
        nodes = (first, later)
        stores = [ClientStore(node.stores, client).load_before("personal", 99) for node in nodes]
        assert same(*stores) and stores[0]


def test_a_client_that_breaks_down_keeps_what_it_had(host: Callable[..., ClientHost]) -> None:
    node = host("ditto")
    node.train("0", 1, start_of(node))
    before = ClientStore(node.stores, "0").load_before("personal", 99)
    wild = host("ditto", "training.lr=1e38")
    with pytest.raises(ClientError, match=r"phase 'personal branch': part 'personal.* no longer"):
        wild.train("0", 2, start_of(node))
    assert same(ClientStore(node.stores, "0").load_before("personal", 99), before)


ODD = """
from clients.methods.fedavg import FedAvg
from fedpers.parts import Part, Parts
import torch

class Odd(FedAvg):
    def upload(self, working):
        return {0}

    def keep(self, working):
        return Parts({{"personal.x": working["head"]}})
"""


@pytest.mark.parametrize(
    ("upload", "named"),
    [
        ("working.only(['body'])", "'body'"),
        ("working.only(['body', 'head', 'received.body'])", "received.body"),
        ("working | {'head': Part.of({'w': torch.zeros(2)})}", "2 x torch.float32"),
    ],
)
def test_an_upload_that_is_not_as_declared_is_the_clients_own_failure(
    plugin: Callable[[str, str], str],
    small: Callable[..., Config],
    tmp_path: Path,
    upload: str,
    named: str,
) -> None:
    name = f"{plugin('odd', ODD.format(upload))}:Odd"
    node = ClientHost(small(name), name, (), tmp_path / "state")
    with pytest.raises(ClientError, match=r"upload: got .*takes parts body, head") as error:
        node.train("0", 1, start_of(node))
    assert named in str(error.value)
    assert ClientStore(node.stores, "0").load_before("personal", 99) == Parts()


def accuracy(model: PersonalModel, parts: Parts, examples: Any) -> int:
    for slot, part in parts.items():
        model.write(slot, part)
    return int((model(examples.x).logits.argmax(1) == examples.y).sum())


def test_scores_are_those_of_the_stored_models(host: Callable[..., ClientHost]) -> None:
    settings = ["strategy.params.mu=0.001", "training.lr=0.1", "training.epochs=30"]
    node = host("ditto", "model.lora=null", *settings)
    start = start_of(node)
    node.train("0", 1, start)
    result = node.evaluate("0", 1, start)
    split, store = node.examples.client("0"), ClientStore(node.stores, "0")
    kept = store.load_before("personal", 99)
    own = Parts({slot: kept[f"personal.{slot}"] for slot in ("body", "head")})
    assert (result.client, result.train, result.val.n, result.test.n) == ("0", 12, 4, 8)
    assert result.test.correct == {
        "personal": accuracy(node.model, own, split.test),
        "global": accuracy(node.model, start, split.test),
    }
    assert result.val.correct["personal"] == accuracy(node.model, own, split.val)
    # It has learned something.
    assert result.test.correct["personal"] > 5 > result.test.correct["global"]
    assert result.outside is not None and result.outside.n == 10
    assert same(store.load("evaluated"), own)
    # Evaluating trains nothing that is kept.
    assert same(store.load_before("personal", 99), kept)


def test_outside_examples_are_others_and_the_same_each_time(
    host: Callable[..., ClientHost],
) -> None:
    node = host("fedavg")
    sample = node.scoring.others("0")
    assert torch.equal(host("fedavg").scoring.others("0").x, sample.x)
    assert not torch.equal(node.scoring.others("1").x, sample.x)
    tests = {k: {tuple(row) for row in node.examples.client(k).test.x.tolist()} for k in "0123"}
    rows = {tuple(row) for row in sample.x.tolist()}
    assert len(rows) == 10 and rows <= tests["1"] | tests["2"] | tests["3"]
    assert not rows & tests["0"]
    assert len(host("fedavg", "evaluation.outside=0").scoring.others("0")) == 0
    assert len(host("fedavg", "evaluation.outside=999").scoring.others("0")) == 24


@pytest.mark.parametrize("name", ["fedavg", "fedcp", "prior", "fedbabu"])
def test_the_local_baseline_is_local_training_under_every_method(
    host: Callable[..., ClientHost], name: str
) -> None:
    settings = ["training.epochs=3", "training.lr=0.3"]
    local = host("local", *settings, state="local")
    for server_round in (1, 2):
        local.train("1", server_round, Parts())
    expected = local.evaluate("1", 2, Parts()).test.correct["personal"]
    node = host(name, *settings)
    upload, _ = node.train("1", 1, start_of(node))
    assert "local" not in node.evaluate("1", 1, upload).test.correct
    assert node.train_baselines(["1"]) == {}
    # Whatever else is in the model's slots.
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        wild = {
            slot: part.like(9 * torch.rand(part.layout.size, generator=generator))
            for slot, part in upload.items()
        }
        assert node.evaluate("1", 2, Parts(wild)).test.correct["local"] == expected
    kept = ClientStore(node.stores, "1").load("baseline")
    trained = ClientStore(local.stores, "1").load_before("personal", 99)
    assert same(kept, trained)


@pytest.mark.parametrize(("select", "first"), [("last", False), ("validation", True)])
def test_the_model_of_the_reported_round_is_exported(
    host: Callable[..., ClientHost], tmp_path: Path, select: str, first: bool
) -> None:
    node = host("ditto", f"evaluation.select={select}", "model.lora=null")
    scored = []
    for server_round in (1, 2):
        upload, _ = node.train("0", server_round, start_of(node))
        node.evaluate("0", server_round, upload)
        kept = ClientStore(node.stores, "0").load_before("personal", 99)
        scored.append(kept["personal.head"]["head.weight"])
    known = (node.model, node.store("0"), node.config)
    export(*known, "0", 1, tmp_path / "adapters", {"round": 1})
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapters" / "0" / "model.safetensors")
    # Without a choice by validation only the last evaluated model is kept.
    assert torch.equal(saved["head.weight"], scored[0 if first else 1])
    manifest = json.loads((tmp_path / "adapters" / "0" / "manifest.json").read_text())
    assert manifest == {"client": "0", "round": 1}


def test_a_newcomer_trains_for_so_many_batches_and_keeps_nothing(
    host: Callable[..., ClientHost],
) -> None:
    node = host("fedavg", "training.lr=0.5")
    before = node.newcomer("0", 2, start_of(node), 0)
    assert before.test.correct["personal"] == before.test.correct["global"]
    after = node.newcomer("0", 2, start_of(node), 60)
    assert after.test.correct["personal"] > before.test.correct["personal"]
    assert not ClientStore(node.stores, "0").folder.exists()
