"""The one door out of a private client, with answers that hold what they may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.node.answers import ANSWERS, answer
from clients.node.door import FIELDS, coarse, leave
from clients.node.host import ClientHost
from fedpers.channels.plain import as_declared
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.config import Config
from fedpers.errors import ClientError
from fedpers.parts import Layout, Part, Parts

SECRET = "Jane Doe, HIV positive"
PRIVATE = ("privacy.enabled=true", "privacy.lr=0.5", "privacy.delta=1e-3")
CLOSED = (*PRIVATE, "evaluation.diagnostics=false")
Make = Callable[..., ClientHost]


@pytest.fixture
def host(small: Callable[..., Config], tmp_path: Path) -> Make:
    """``host("fedavg", ...)``: a simulation's host under example-level privacy."""

    def make(name: str, *overrides: str) -> ClientHost:
        return ClientHost(small(name, *CLOSED, *overrides), name, (), tmp_path / "run" / "state")

    return make


BODY = {"clients": ["0", "2"], "round": 1}
REPORT = {"examples": 1, "loss": None, "noise": {"body": 0.1, "head": 0.1}}
SPENDING = {"epsilon": 1.0, "delta": 1e-3, "sigma": 3.0}


def test_each_kind_of_message_has_its_fields() -> None:
    assert set(FIELDS) == set(ANSWERS)


def test_an_honest_answer_passes_as_it_is(host: Make) -> None:
    node = host("fedavg")
    start = node.algorithm.initial.only(node.algorithm.sends)
    told = {
        "reports": {"0": {**REPORT, **SPENDING}},
        "failures": {"2": "spent"},
        "spent": {"2": SPENDING},
        "encrypt": 0.0,
        "decrypt": 0.0,
    }
    rows, sent = leave("train", node, BODY, ([start], told))
    assert sent == told and [row.digest() for row in rows if isinstance(row, Parts)] == [
        start.digest()
    ]


# What a handler, a method or a plug-in may try, and what of it is named in the node's log.
EXTRAS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("train", {"note": SECRET}, ["train.note"]),
    ("train", {SECRET: 1}, [f"train.{SECRET}"]),
    ("train", {"reports": {"0": {**REPORT, "labels": [3, 1, 4]}}}, ["train.reports.0.labels"]),
    ("train", {"reports": {SECRET: REPORT}}, [f"train.reports.{SECRET}"]),
    ("train", {"reports": {"0": {**REPORT, "loss": 0.3}}}, ["train.reports.0.loss"]),
    ("train", {"reports": {"0": {**REPORT, "examples": 12}}}, ["train.reports.0.examples"]),
    ("train", {"reports": {"0": {**REPORT, "examples": SECRET}}}, ["train.reports.0.examples"]),
    (
        "train",
        {"reports": {"0": {**REPORT, "noise": {"body": 0.1, SECRET: 0.1}}}},
        [f"train.reports.0.noise.{SECRET}"],
    ),
    (
        "train",
        {"reports": {"0": {**REPORT, "noise": {"body": [0.1, 0.2]}}}},
        ["train.reports.0.noise.body"],
    ),
    ("train", {"reports": [SECRET]}, ["train.reports"]),
    ("train", {"failures": {"0": f"ValueError: {SECRET}"}}, ["train.failures.0"]),
    ("train", {"failures": {"0": "data"}}, ["train.failures.0"]),
    ("train", {"spent": {"0": {"epsilon": SECRET}}}, ["train.spent.0.epsilon"]),
    ("train", {"spent": {"0": {"epsilon": 12**1000}}}, ["train.spent.0.epsilon"]),
    ("train", {"encrypt": SECRET}, ["train.encrypt"]),
    ("roster", {"clients": [SECRET]}, ["roster.clients"]),
    ("roster", {"scored": [1.0]}, ["roster.scored"]),
    ("roster", {"channel": {"id": "a", "secret": SECRET}}, ["roster.channel.secret"]),
    ("baseline", {"failures": {"0": "failed"}}, ["baseline.failures"]),
    ("evaluate", {"results": [{"client": "0"}]}, ["evaluate.results"]),
    ("evaluate", {"failures": {"0": "failed"}}, ["evaluate.failures"]),
    ("newcomers", {"results": {"0": [{"client": "0"}]}}, ["newcomers.results"]),
    ("export", {"failures": {"0": "failed"}}, ["export.failures"]),
    ("channel", {"rows": {"0": [SECRET]}}, ["channel.rows.0"]),
    ("channel", {"seen": SECRET}, ["channel.seen"]),
]


def test_what_is_not_declared_is_not_sent(host: Make, undeclared: list[str]) -> None:
    node = host("fedavg")
    for kind, told, named in EXTRAS:
        _, sent = leave(kind, node, BODY, ([], told))
        assert undeclared == named
        undeclared.clear()
        text = json.dumps(sent)
        assert not any(secret in text for secret in ("Jane", "HIV", "0.3", "12", "[3, 1, 4]"))


def test_the_order_of_parts_and_fields_is_the_declared_one(host: Make) -> None:
    node = host("fedavg")
    start = node.algorithm.initial
    (row,), sent = leave(
        "train",
        node,
        BODY,
        (
            [start.only(["head", "body"])],
            {"spent": {}, "failures": {"2": "failed", "0": "spent"}, "reports": {}},
        ),
    )
    assert list(row if isinstance(row, Parts) else ()) == ["body", "head"]
    assert list(sent) == ["reports", "failures", "spent"] and list(sent["failures"]) == ["0", "2"]


def test_parts_by_another_name_or_layout_are_refused(host: Make) -> None:
    node = host("fedavg")
    start = node.algorithm.initial.only(node.algorithm.sends)
    more = start | {SECRET: start["head"]}
    renamed = start | {"head": Part.of({SECRET: torch.zeros(start["head"].layout.size)})}
    broken = start | {"head": start["head"].like(start["head"].vector * float("nan"))}
    for upload in (more, renamed, broken, start.only(["body"])):
        with pytest.raises(ClientError, match=r"^upload: "):
            as_declared(upload, node.declared)
        with pytest.raises(ClientError, match=r"^upload: "):
            leave("train", node, BODY, ([upload], {}))


def test_names_and_shapes_under_encryption_are_those_the_server_knows(host: Make) -> None:
    node = host("fedavg", "encryption.enabled=true")
    layout, groups = Layout((("w", (3,)),)), (Group(("body",)),)
    terms = {"groups": [[["body"], False]], "layouts": {"body": layout.to_json()}}
    row = SealedParts({"body": layout}, groups, (b"sealed",))
    body = {**BODY, "kind": "seal", "channel": json.loads(json.dumps(terms))}
    (sent,), _ = leave("channel", node, body, ([replace(row, divisor=7.25, broken=SECRET)], {}))
    assert sent == row
    other = Layout(((SECRET, (3,)),))
    for odd in (
        replace(row, layouts={"body": other}),
        replace(row, groups=(Group(("body",)), Group(("head",)))),
        node.algorithm.initial,
    ):
        with pytest.raises(ClientError, match=r"^upload: sealed otherwise"):
            leave("channel", node, body, ([odd], {}))


def test_parts_leave_in_answers_to_training_alone(host: Make, undeclared: list[str]) -> None:
    node = host("fedavg")
    for kind in ("roster", "baseline", "evaluate", "newcomers", "export"):
        rows, _ = leave(kind, node, BODY, ([node.algorithm.initial], {}))
        assert rows == [] and undeclared == [f"{kind}: parts"]
        undeclared.clear()


def test_every_answer_goes_through_the_door(host: Make, undeclared: list[str]) -> None:
    node = host("fedavg")
    train_all, start = node.train_all, node.algorithm.initial.only(node.algorithm.sends)

    def chatty(*asked: Any) -> Any:
        trained = train_all(*asked)
        return {c: (upload, report | {"labels": SECRET}) for c, (upload, report) in trained.items()}

    node.train_all = chatty  # type: ignore[method-assign]
    _, sent = answer("train", node, [start], BODY | {"rows": {"0": 0, "2": 0}})
    assert set(sent["reports"]) == {"0", "2"} and SECRET not in json.dumps(sent)
    assert undeclared == ["train.reports.0.labels", "train.reports.2.labels"]
    undeclared.clear()


def test_times_leave_coarsely(host: Make) -> None:
    _, sent = leave("train", host("fedavg"), BODY, ([], {"encrypt": 5.375, "decrypt": 0.125}))
    assert sent == {"encrypt": 4.0, "decrypt": 0.0}


@given(st.floats(min_value=0, max_value=1e9))
def test_times_leave_as_powers_of_two(exact: float) -> None:
    sent = coarse(exact)
    assert (
        sent == 0 if exact < 1 else sent <= exact < 2 * sent and sent.hex().startswith("0x1.0000")
    )


def test_diagnostics_are_sent_in_full_where_the_settings_say_so(host: Make) -> None:
    node = host("fedavg", "evaluation.diagnostics=true")
    told = {"results": [{"client": "0"}], "held_back": False, "failures": {"2": "failed"}}
    assert leave("evaluate", node, BODY, ([], told))[1] == told
    told = {"reports": {"0": {**REPORT, "loss": 0.25}}, "encrypt": 1.375, "decrypt": 0.125}
    assert leave("train", node, BODY, ([], told))[1] == told


def test_by_noised_counts_any_count_may_leave(host: Make, undeclared: list[str]) -> None:
    node = host("fedavg", "privacy.weights=counts", "privacy.delta=1e-3")
    for found, named in (
        (12, []),
        (-1, ["train.reports.0.examples"]),
        (12.5, ["train.reports.0.examples"]),
    ):
        leave("train", node, BODY, ([], {"reports": {"0": {"examples": found}}}))
        assert undeclared == named
        undeclared.clear()
