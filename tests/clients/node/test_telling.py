"""What a client tells beside its updates, and what it is told alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.node.answers import answer
from clients.node.door import leave
from clients.node.host import ClientHost
from clients.node.telling import ask, poll
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent

PRIVATE = ("privacy.enabled=true", "privacy.lr=0.5", "privacy.delta=1e-3")
CLOSED = (*PRIVATE, "evaluation.diagnostics=false")

METHOD = """
from clients.methods.fedavg import FedAvg
from fedpers.stats import Stat

heard = []


class Tells(FedAvg):
    reports = (Stat("loss", 0.0, 2.0),)
    polls = (Stat("first", -1.0, 1.0),)

    def receive(self, broadcast, personal, context):
        heard.append((context.client, context.server_round, dict(context.said)))
        return super().receive(broadcast, personal, context)

    def report(self, working, trainer):
        outputs = trainer.outputs(self.branch(()), working, trainer.examples.x)
        return {"loss": self.task.loss(outputs, trainer.examples.y)}

    def poll(self, working, trainer):
        return {"first": trainer.examples.x.flatten(1)[:, 0]}


class Talks(Tells):
    messages = ("labels",)

    def answer(self, kind, working, body, trainer):
        counted = [int((trainer.examples.y == k).sum()) for k in body["classes"]]
        return {"counts": counted, "parts": sorted(working)}
"""


@pytest.fixture
def host(small: Callable[..., Config], plugin: Any, tmp_path: Path) -> Callable[..., ClientHost]:
    name = plugin("tells", METHOD)

    def make(method: str, *overrides: str, state: str = "run") -> ClientHost:
        chosen = f"{name}:{method}"
        return ClientHost(small(chosen, *overrides), chosen, (), tmp_path / state / "state")

    return make


def start_of(host: ClientHost) -> Parts:
    return host.algorithm.initial.only(host.algorithm.sends)


def test_a_report_holds_the_methods_own_numbers(host: Callable[..., ClientHost]) -> None:
    node = host("Tells")
    _, report = node.train("0", 1, start_of(node))
    assert report["method"].keys() == {"loss"} and 0 < report["method"]["loss"] < 1.2
    _, nobody = node.train("3", 1, start_of(node))  # it has no examples
    assert nobody == {"examples": 0, "loss": None}
    assert poll(node, "3", 1, start_of(node)) == {}
    first = float(node.examples.client("0").train.x.flatten(1)[:, 0].clamp(-1, 1).mean())
    assert poll(node, "0", 1, start_of(node)) == {"first": pytest.approx(first)}


def test_a_client_hears_what_was_said_to_it_alone(host: Callable[..., ClientHost]) -> None:
    node = host("Tells", "training.fold=off")
    heard = importlib.import_module(type(node.algorithm).__module__).heard
    said = {"0": {"cluster": 2}, "2": {"cluster": 1}}
    body = {"clients": ["0", "1"], "rows": {"0": 0, "1": 0}, "round": 1, "said": said}
    heard.clear()
    answer("train", node, [start_of(node)], body)
    assert set(map(repr, heard)) == {"('0', 1, {'cluster': 2})", "('1', 1, {})"}
    heard.clear()
    answer("evaluate", node, [start_of(node)], body)
    answer("newcomers", node, [start_of(node)], {**body, "clients": ["0"], "batches": [0]})
    poll(node, "0", 1, start_of(node), said["0"])
    assert heard == [("0", 1, {"cluster": 2}), ("1", 1, {}), *[("0", 1, {"cluster": 2})] * 2]


def test_what_is_told_privately_is_noised_charged_and_said_again(
    host: Callable[..., ClientHost],
) -> None:
    node = host("Tells", *CLOSED, "rounds=3")
    sent = start_of(node)
    polled = poll(node, "0", 1, sent)
    assert -1 <= polled["first"] <= 1
    account = node.account("0")
    assert account is not None
    before = account.budget.spent
    assert before > 0 and poll(node, "0", 1, sent) == polled and account.budget.spent == before
    body = {"clients": ["0"], "rows": {"0": 0}, "round": 1}
    _, told = answer("train", node, [sent], body)
    assert 0 <= told["reports"]["0"]["method"]["loss"] <= 2
    spent = account.budget.spent
    assert answer("train", node, [sent], body)[1]["reports"] == told["reports"]
    # The same message but for what is said is another one.
    answer("train", node, [sent], {**body, "said": {"0": {"more": 1}}})
    assert account.budget.spent > spent > before
    for server_round in (2, 3):
        poll(node, "0", server_round, sent)
    with pytest.raises(BudgetSpent):
        for server_round in range(4, 400):
            poll(node, "0", server_round, sent)


def test_only_the_declared_numbers_leave(
    host: Callable[..., ClientHost], undeclared: list[str]
) -> None:
    node = host("Tells", *CLOSED)
    report = {"examples": 1, "loss": None, "method": {"loss": 0.5, "name": 1.0}}
    body = {"clients": ["0", "1"], "round": 1}
    lists = {"examples": 1, "loss": None, "method": {"loss": [0.5]}}
    _, told = leave("train", node, body, ([], {"reports": {"0": report, "1": lists}}))
    assert told["reports"]["0"]["method"] == {"loss": 0.5}
    assert told["reports"]["1"]["method"] == {}
    assert undeclared == ["train.reports.0.method.name", "train.reports.1.method.loss"]
    undeclared.clear()


def test_the_methods_own_messages(host: Callable[..., ClientHost]) -> None:
    node = host("Talks")
    y, body = node.data.client("0").train.y, {"classes": [0, 2]}
    counts = [int((y == 0).sum()), int((y == 2).sum())]
    assert ask(node, "labels", "0", 0, Parts(), body) == {"counts": counts, "parts": []}
    with_parts = ask(node, "labels", "0", 1, start_of(node), body)
    assert with_parts["parts"] == ["body", "head", "received.body", "received.head"]
    with pytest.raises(ClientError, match=r"^message: got 'names' of the method, takes labels$"):
        ask(node, "names", "0", 0, Parts(), body)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_private_run_refuses_what_no_noise_covers(
    host: Callable[..., ClientHost], unit: str
) -> None:
    with pytest.raises(ConfigError, match="a method without messages of its own"):
        host("Talks", *CLOSED, f"privacy.unit={unit}")
    if unit == "client":
        with pytest.raises(ConfigError, match=r"this one tells loss$"):
            host("Tells", *CLOSED, "privacy.unit=client")
    else:
        node = host("Tells", *CLOSED)
        with pytest.raises(ClientError, match=r"takes none with privacy$"):
            ask(node, "labels", "0", 0, Parts(), {})


def test_protected_counts_are_released_before_the_first_poll(
    host: Callable[..., ClientHost],
) -> None:
    node = host("Tells", *CLOSED, "privacy.weights=counts")
    told = [poll(node, client, 1, start_of(node)) for client in "03"]  # 12 examples, and none
    assert all(-1 <= found["first"] <= 1 for found in told)
    counts = [node.store(client).load_json("released")["examples"] for client in "03"]
    node.train("0", 1, start_of(node))
    assert node.store("0").load_json("released")["examples"] == counts[0]
