"""Means of updates that are added up as they come, and nodes that answer in several messages."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import fedpers.channels.plain as plain
import strategies.post as post
from fedpers.errors import RunError
from fedpers.mixing import Mixing
from fedpers.parts import Parts
from fedpers.streaming import BLOCK, StreamingMean
from strategies.base import Needs
from strategies.methods.fedavg import FedAvg
from strategies.run import Run

MANY = [str(k) for k in range(1, 2 * BLOCK + 23)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``small(2)``: messages to train are for two clients at most."""

    def small(clients: int) -> None:
        monkeypatch.setattr(post, "REPLY", 1)
        monkeypatch.setattr(post, "FEWEST", clients)

    return small


def trained(server: Any) -> list[tuple[int, list[str]]]:
    """The messages to train that came: node, clients."""
    return [(n, body["clients"]) for n, kind, body, _ in server.grid.seen if kind == "train"]


# -- who streams ---------------------------------------------------------------------------------


class OwnMixing(FedAvg):
    weights = "own"

    def mixing(self, server_round: int, reports: Any) -> Mixing:
        return Mixing.equal(len(reports))


class Reads(FedAvg):
    @classmethod
    def needs(cls, params: Any) -> Needs:
        return Needs(single_updates="everything")

    def refine(self, server_round: int) -> None:
        self.found = {client: len(self.updates[client]) for client in self.reported}


class Refines(FedAvg):
    """Looks at the mean alone."""

    def refine(self, server_round: int) -> None:
        self.found = dict(self.updates)


class Undeclared(FedAvg):
    """Has a mixing of its own, and does not say so."""

    def mixing(self, server_round: int, reports: Any) -> Mixing:
        return Mixing.equal(len(reports))


class UndeclaredRows(FedAvg):
    def mixing(self, server_round: int, reports: Any) -> Mixing:
        return Mixing(torch.eye(len(reports)), tuple(reports))


def streams(strategy: Any) -> bool:
    return bool(strategy.shares) and strategy.channel.stream(3) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("fedavg", "fedper", "ditto", "apfl", "feddpa", "fedcp")),
        *((name, False) for name in ("local", "pfedsim", "perada")),
    ],
)
def test_methods_that_take_a_mean_stream(bind: Any, name: str, expected: bool) -> None:
    assert streams(bind(name)) is expected


def test_a_method_streams_as_its_settings_need(bind: Any) -> None:
    assert streams(bind("perada", "strategy.params.distill=false"))


@pytest.mark.parametrize(
    "override",
    [
        "strategy.combine=median",
        "encryption.enabled=true",
        "privacy.enabled=true privacy.unit=client",
    ],
)
def test_settings_that_need_all_updates_at_once(bind: Any, override: str) -> None:
    assert streams(bind("fedavg", "privacy.enabled=true"))
    assert not streams(bind("fedavg", *override.split()))


def served(serve: Any, kind: type[FedAvg]) -> Any:
    """A server of a method that is nobody's but the test's."""
    return serve("fedavg", kind=kind)


def test_a_method_that_looks_at_updates_gets_them_all(serve: Any) -> None:
    server = served(serve, Reads)
    assert not streams(server.strategy)
    server.train()
    assert server.strategy.found == {"1": 2, "2": 2, "3": 2}
    assert server.strategy.updates == {} and server.run.round.answers.rows == {}  # gone again


def test_a_method_that_refines_the_mean_streams(serve: Any) -> None:
    server = served(serve, Refines)
    assert streams(server.strategy)
    server.train()
    assert server.strategy.found == {}


def test_weights_of_ones_own_are_taken(serve: Any) -> None:
    server = served(serve, OwnMixing)
    assert not streams(server.strategy)
    server.train()
    assert server.strategy.parts["head"].vector.tolist() == [2.0] * 6


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Undeclared, "got weights of its own, takes those by examples; set weights = "),
        (UndeclaredRows, r"got rows for \('1', '2', '3'\), takes one; declare it: Needs"),
    ],
)
def test_a_mixing_that_is_not_declared_is_not_ignored(serve: Any, kind: Any, line: str) -> None:
    with pytest.raises(RunError, match=f"^mixing: {line}"):
        served(serve, kind).train()


# -- several messages a node ---------------------------------------------------------------------


def test_a_node_answers_its_messages_one_after_another(serve: Any, small: Any) -> None:
    small(2)
    server = serve("fedavg", hosts=[["10", "9", "2", "1", "5"], ["3"]])
    assert server.train()["answered"] == 6
    # In the roster's order; the other node's only message comes before this one's second.
    assert trained(server) == [(0, ["1", "2"]), (1, ["3"]), (0, ["5", "9"]), (0, ["10"])]


def test_as_many_clients_a_message_as_keep_the_reply_small(
    bind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(*hosted: int) -> list[tuple[int, int]]:
        hosts = {k: [str(c) for c in range(count)] for k, count in enumerate(hosted)}
        split = letters._split(hosts)
        for node, clients in hosts.items():
            assert [c for to, some in split if to == node for c in some] == clients
        return [(node, len(some)) for node, some in split]

    letters = Run(bind("fedavg")).post
    assert sizes(9000, 1) == [(0, 9000), (1, 1)] and sizes() == []
    monkeypatch.setattr(post, "REPLY", 100 * 40 + 39)  # the toy's update has 40 bytes
    assert sizes(200) == [(0, 100)] * 2 and sizes(201) == [(0, 67)] * 3
    # Both nodes are half through at the same time; a message has 64 clients or more.
    assert sizes(200, 150) == [(0, 100)] * 2 + [(1, 75)] * 2
    assert sizes(200, 70) == [(0, 100)] * 2 + [(1, 64), (1, 6)]
    monkeypatch.setattr(post, "REPLY", 39)
    assert sizes(200) == [(0, 64)] * 3 + [(0, 8)]


def received(strategy: Any) -> dict[str, Any]:
    return {client: strategy.broadcast(1, client) for client in ("1", "2", "3")}


def test_only_updates_in_the_clear_are_split(bind: Any, serve: Any, small: Any) -> None:
    small(2)
    for settings, count in (([], 2), (["encryption.enabled=true"], 1)):
        run = Run(bind("fedavg", *settings))
        run.roster.hosts, sent = {7: ["1", "2", "3"]}, received(run.method)
        assert len(run.post.messages("train", 1, sent)[0]) == count
        messages, groups = run.post.messages("evaluate", 1, sent)
        assert len(messages) == 1 and [*groups.values()] == [["1", "2", "3"]]


def test_messages_with_the_same_parts_hold_them_once(serve: Any, small: Any) -> None:
    small(1)
    server = serve("fedavg")
    strategy = server.strategy
    messages, _ = server.run.post.messages("train", 1, received(strategy))
    assert len(messages) == 3
    assert len({id(message.content["parts"]) for message in messages}) == 1
    strategy.rows["2"] = Parts(dict(strategy.parts))
    messages, _ = server.run.post.messages("train", 1, received(strategy))
    assert len({id(message.content["parts"]) for message in messages}) == 3


def test_the_mean_does_not_hang_on_nodes_and_messages(serve: Any, small: Any) -> None:
    acts = {"2": "nan", "70": "fail", "100": "bad report", "131": "no examples"}
    found = {}
    for clients in (10**6, 7, BLOCK):
        small(clients)
        for hosts in ([MANY], [MANY[::-2], MANY[-2::-2]], [MANY[:3], MANY[3:]]):
            server = serve("fedavg", hosts=hosts, acts=acts)
            metrics = server.train()
            failures = server.run.round.answers.failures
            assert len(trained(server)) == sum(-(-len(hosted) // clients) for hosted in hosts)
            assert metrics == {"answered": len(MANY) - 3, "loss": pytest.approx(0.5)}
            assert set(failures) == {"2", "70", "100"}
            assert failures["2"] == "update: part 'body' is not finite"
            assert server.run.round.answers.nbytes == 40 * (len(MANY) - 1)  # 70 sent none
            found[clients, str(hosts)] = server.strategy.parts.digest()
    assert len(found) == 9 and len(set(found.values())) == 1
    counted = [int(client) for client in MANY if client not in {"2", "70", "100", "131"}]
    mean = sum(k * k for k in counted) / sum(counted)
    assert server.strategy.parts["body"].vector.tolist() == [pytest.approx(mean, rel=1e-6)] * 4


@pytest.mark.parametrize("act", ["raise", "short", "empty", "garbage", "shape"])
def test_a_message_that_cannot_be_used_costs_its_own_clients(
    serve: Any, small: Any, act: str
) -> None:
    small(2)
    server = serve("fedavg", hosts=[["1", "2", "4"], ["3"]], acts={0: act})
    answer = server.grid.acts.pop(0)

    def once(message: Any, context: Any) -> Any:
        """Misbehaves in its first message only."""
        server.grid.acts = {0: answer} if len(trained(server)) == 0 else {}
        return type(server.grid)._train(server.grid, message, context)

    server.grid.app._registered_funcs.clear()
    server.grid.app.train()(once)
    assert server.train()["answered"] == 2
    assert set(server.run.round.answers.failures) == {"1", "2"}
    # (3 * 3 + 4 * 4) / 7
    assert server.strategy.parts["head"].vector.tolist() == [pytest.approx(25 / 7)] * 6


def test_a_node_speaks_only_for_the_clients_of_the_message_it_answers(
    serve: Any, small: Any
) -> None:
    small(1)
    server = serve("fedavg", hosts=[["1", "2"], ["3"]], acts={0: "speaks for all"})
    server.train()
    # 1 and 2 claim 10^9 examples each in their own messages; what is said of 3 does not count.
    assert server.strategy.parts["head"].vector.tolist() == [pytest.approx(1.5)] * 6
    server = serve("fedavg", hosts=[["1", "2"]], acts={"1": "fail", 0: "speaks for all"})
    server.train()
    assert server.run.round.answers.failures == {"1": "ValueError: broken"}
    assert server.strategy.parts["head"].vector.tolist() == [2.0] * 6


def test_with_too_few_left_of_all_messages_nothing_is_mixed(serve: Any, small: Any) -> None:
    small(1)
    server = serve("fedavg", "strategy.min_clients=3", acts={"2": "fail"})
    before = server.strategy.parts
    assert server.train(1) == {"answered": 2, "skipped": 1}
    assert server.strategy.parts is before
    server.grid.acts.clear()
    assert server.train(2)["answered"] == 3
    assert server.strategy.parts["head"].vector.tolist() == [pytest.approx(14 / 6)] * 6


def test_a_silent_node_is_given_no_further_message(serve: Any, small: Any) -> None:
    small(1)
    server = serve("fedavg", hosts=[["1", "2"], ["3"]])
    server.grid.silent = {0}
    assert server.train()["answered"] == 1
    assert trained(server) == [(0, ["1"]), (1, ["3"])]
    silent = dict.fromkeys(["1", "2"], "no answer within 0.05 s")
    assert server.run.round.answers.failures == silent


def test_few_updates_are_there_at_a_time(
    serve: Any, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(BLOCK)
    held: list[int] = []

    class Watched(StreamingMean):
        def add(self, position: int, weight: float, update: Parts) -> None:
            super().add(position, weight, update)
            held.append(self.held)

    monkeypatch.setattr(plain, "StreamingMean", Watched)
    server = serve("fedavg", hosts=[MANY])
    server.train()
    assert len(held) == len(MANY) and max(held) == BLOCK - 1


# -- whole runs ----------------------------------------------------------------------------------


def test_a_run_in_small_messages_is_the_same_run(run: Any, small: Any) -> None:
    private = [
        "privacy.enabled=true",
        "privacy.epsilon=1e4",
        "privacy.deterministic_for_tests=true",
    ]
    for settings in ([], private):
        settings = [*settings, "training.fold=off"]
        whole = run("fedavg", *settings)
        small(1)
        split = run("fedavg", *settings)
        model = [Parts.load(found.folder / "global.safetensors") for found in (whole, split)]
        assert model[0].digest() == model[1].digest()
        for one, other in zip(whole.rounds, split.rounds, strict=True):
            assert one["answered"] == other["answered"] == 6
            assert one["uplink_bytes"] == other["uplink_bytes"]
            assert other["downlink_bytes"] == pytest.approx(3 * one["downlink_bytes"], rel=0.01)
            assert one.get("loss") == other.get("loss")
            assert all(seconds >= 0 for seconds in other["seconds"].values())
        signal = [
            (found.report["privacy"] or {}).get("signal_to_noise") for found in (whole, split)
        ]
        assert signal[0] == signal[1]
        small(10**6)


def test_what_averaging_both_factors_costs_is_said_once(
    run: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fedpers"), "propagate", True)
    caplog.set_level(logging.INFO, logger="fedpers")
    run("fedavg", "model.lora.share=both")
    lines = [line for line in caplog.messages if "averaging both factors" in line]
    assert len(lines) == 1 and lines[0].endswith("% (6 clients)")
