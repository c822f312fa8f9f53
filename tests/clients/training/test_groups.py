"""A node that trains its clients in groups, and what it keeps of that choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.node.host import BASELINE, PERSONAL, ClientHost
from clients.training.groups import SIZES
from fedpers.config import Config, load_config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent

CLIENTS = ["0", "1", "2", "3"]  # the last without examples
PRIVATE = ("privacy.enabled=true", "privacy.deterministic_for_tests=true", "privacy.steps=2")
Small = Callable[..., Config]


@pytest.fixture
def node(small: Small, tmp_path: Path) -> Callable[..., ClientHost]:
    def make(fold: str, *overrides: str, method: str = "ditto") -> ClientHost:
        config = small(method, f"training.fold={fold}", *overrides)
        return ClientHost(config, method, [], tmp_path / f"run-{fold}" / "state")

    return make


def sent(host: ClientHost) -> dict[str, Parts]:
    """What the server sends in the first round: adapters and head, away from zero."""
    torch.manual_seed(7)
    initial = host.algorithm.initial.only(host.algorithm.sends)
    parts = Parts(
        {n: p.like(p.vector + 0.1 * torch.randn(len(p.vector))) for n, p in initial.items()}
    )
    return dict.fromkeys(CLIENTS, parts)


@pytest.mark.parametrize("privacy", [(), PRIVATE], ids=["plain", "private"])
def test_groups_answer_and_keep_what_single_clients_do(
    node: Callable[..., ClientHost], privacy: tuple[str, ...]
) -> None:
    alone, together = node("off", *privacy), node("3", *privacy)
    for server_round in (1, 2):
        one = alone.train_all(sent(alone), server_round)
        other = together.train_all(sent(together), server_round)
        for client in CLIENTS:
            expected, answer = one[client], other[client]
            assert isinstance(expected, tuple) and isinstance(answer, tuple)
            assert_close(answer[0], expected[0])
            assert numbers(answer[1]) == pytest.approx(numbers(expected[1]), abs=1e-5)
            kept = [
                h.store(client).load_before(PERSONAL, server_round + 1) for h in (together, alone)
            ]
            assert_close(*kept)
    assert (alone.groups.known, together.groups.known) == (1, 3)


@pytest.mark.parametrize("fold", ["1", "auto"])
def test_a_private_client_alone_needs_no_hooks_but_for_off(
    node: Callable[..., ClientHost], fold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, host = node("off", *PRIVATE), node(fold, *PRIVATE)
    broadcast = sent(reference)["0"]
    expected, _ = reference.train("0", 1, broadcast)
    monkeypatch.setattr(
        "clients.training.trainer.private_steps", lambda *_, **__: pytest.fail("hooks")
    )
    found, _ = host.train("0", 1, broadcast)
    assert_close(found, expected)


def test_a_private_client_alone_keeps_the_hooks_where_the_model_does_not_fold(
    node: Callable[..., ClientHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, host = node("off", *PRIVATE), node("1", *PRIVATE)
    broadcast = sent(reference)["0"]
    expected, _ = reference.train("0", 1, broadcast)
    monkeypatch.setattr(
        "clients.training.groups.disagreement", lambda *_: "its trunk looks elsewhere"
    )
    found, _ = host.train("0", 1, broadcast)
    assert all(torch.equal(found[name].vector, part.vector) for name, part in expected.items())


def assert_close(found: Parts, expected: Parts) -> None:
    assert found.layouts == expected.layouts
    for name, part in expected.items():
        torch.testing.assert_close(found[name].vector, part.vector, rtol=0, atol=1e-5)


def numbers(report: dict[str, Any]) -> dict[str, float]:
    nested = dict(report.get("noise", {}))
    flat = {name: value for name, value in report.items() if isinstance(value, int | float)}
    return flat | {f"noise.{name}": value for name, value in nested.items()}


def test_a_client_that_has_spent_its_budget_costs_itself(
    node: Callable[..., ClientHost],
) -> None:
    host = node("3", *PRIVATE)
    for server_round in range(1, 4):  # more rounds than the budget is for
        answers = host.train_all(dict.fromkeys(["2"], sent(host)["2"]), server_round)
    answers = host.train_all(sent(host), 9)
    assert isinstance(answers["2"], BudgetSpent)
    assert all(isinstance(answers[client], tuple) for client in "013")


def test_a_client_that_fails_costs_itself(node: Callable[..., ClientHost]) -> None:
    host = node("3")
    host.examples.client("1").train.x[0] = float("nan")
    answers = host.train_all(sent(host), 1)
    assert isinstance(answers["1"], ClientError)
    assert all(isinstance(answers[client], tuple) for client in "023")
    with pytest.raises(ClientError, match="no longer finite"):
        host.train("1", 10, sent(host)["1"])


def test_a_client_that_cannot_be_tried_costs_itself(
    node: Callable[..., ClientHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = node("3")
    given = host.examples.client

    def load(client: str) -> Any:
        if client == "1":
            raise ValueError("its examples cannot be read")
        return given(client)

    monkeypatch.setattr(host.examples, "client", load)
    answers = host.train_all(sent(host), 1)
    assert isinstance(answers["1"], ValueError)
    assert all(isinstance(answers[client], tuple) for client in CLIENTS if client != "1")


def test_baselines_in_groups_are_those_of_single_clients(
    node: Callable[..., ClientHost],
) -> None:
    alone, together = node("off"), node("2")
    together.train_all(sent(together), 1)  # the size is known from the first round on
    together.examples.client("2").train.x[0] = float("nan")
    assert alone.train_baselines(CLIENTS) == {}
    failed = together.train_baselines(CLIENTS)
    assert list(failed) == ["2"] and "no longer finite" in str(failed["2"])
    for client in ("0", "1", "3"):
        found, expected = (h.store(client).load(BASELINE) for h in (together, alone))
        assert_close(found, expected)
    assert not together.store("2").load(BASELINE)


def test_the_choice_is_made_once_a_run(node: Callable[..., ClientHost]) -> None:
    host = node("auto")
    one = {"0": sent(host)["0"]}
    host.train_all(one, 1)
    assert not host.groups.file.exists()  # nobody to form a group with
    host.train_all(sent(host), 2)
    assert host.groups.known in (1, *SIZES)
    assert host.groups.file.read_text() == str(host.groups.known)
    host.groups.file.write_text("3")  # as another node of this machine may have found
    again = node("auto")
    again.train_all(sent(again), 3)
    assert again.groups.known == 3


def test_the_setting_takes_auto_off_or_a_number() -> None:
    for given in ("auto", "off", "false", "16", "1"):
        taken = {"false": "off"}.get(given, given)
        assert load_config(None, [f"training.fold={given}"]).training.fold == taken
    for wrong in ("0", "-2", "many", "2.5"):
        with pytest.raises(ConfigError, match=r"training\.fold: got .*, takes auto, off, or how"):
            load_config(None, [f"training.fold={wrong}"])
