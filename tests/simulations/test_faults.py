"""Runs in which things go wrong: they end, nothing is lost, and no ledger counts too little."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults import KINDS, Fault, FaultyGrid, disturbed, plan

from clients.node.store import ClientStore
from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.privacy import Ledger, data_digest
from simulations.backends.serial import run_serial

ROUNDS, CLIENTS, NODES, FAULTS, STEPS = 30, 50, 25, 300, 2
SETTINGS = [
    *("strategy.name=perada", "strategy.params.distill=false", f"rounds={ROUNDS}"),
    f"data.clients={CLIENTS}",
    *("strategy.params.lam=0.2", "strategy.params.personal_epochs=5"),
    *("strategy.params.personal_lr=0.1", "data.partition.alpha=0.3", "data.partition.min_size=4"),
    *("model.name=mlp", "model.standardise=true", "model.pretrain.task=clusters"),
    *("data.public_fraction=0.1", "training.batch_size=16", "training.lr=0.3"),
    *("privacy.enabled=true", "privacy.epsilon=8", "privacy.delta=1e-3", "privacy.lr=0.3"),
    *(f"privacy.steps={STEPS}", "privacy.deterministic_for_tests=true"),
    *(f"simulation.nodes={NODES}", "evaluation.every=10", "evaluation.local_baseline=false"),
    *("evaluation.adapters=false", "evaluation.outside=0", "round_timeout=0.2"),
]


class Outcome(NamedTuple):
    """A run and the grid it ran on."""

    folder: Path
    grid: FaultyGrid
    report: dict[str, Any]
    rounds: list[dict[str, Any]]


def go(folder: Path, faults: list[Fault], *overrides: str) -> Outcome:
    """Run the settings with faults."""
    config = load_config(None, [*SETTINGS, *overrides])
    made: list[FaultyGrid] = []

    def make(*arguments: Any, **options: Any) -> FaultyGrid:
        made.append(FaultyGrid(*arguments, faults, folder / "state", **options))
        stack.append(disturbed(made[0]))
        stack[0].__enter__()
        return made[0]

    stack: list[Any] = []
    try:
        run_serial(config, folder, show=lambda line: None, make_grid=make)
    finally:
        for one in stack:
            one.__exit__(None, None, None)
    report = json.loads((folder / "report.json").read_text())
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return Outcome(folder, made[0], report, [json.loads(line) for line in lines])


def charged(outcome: Outcome, *overrides: str) -> dict[str, int]:
    """For each client the rounds that its ledger holds."""
    config = load_config(None, [*SETTINGS, *overrides])
    data, found = load_data(config), {}
    for client in data.clients:
        own = data.client(client)
        name = data_digest([(part.x, part.y) for part in (own.train, own.val, own.test)])
        ledger = Ledger(outcome.folder / "state" / "ledgers" / f"{name}.json")
        found[client] = sum(release.steps for release in ledger.releases) // STEPS
    return found


def check(outcome: Outcome, *overrides: str) -> None:
    """That nothing was lost, and everything is accounted for."""
    rounds = charged(outcome, *overrides)
    for client, uploads in outcome.grid.came.items():
        assert len({digest for _, digest in uploads}) <= rounds[client]
    assert outcome.grid.trouble.emptied == []
    for client in rounds:
        assert ClientStore(outcome.folder / "state", client).load_before("personal", 10**6)
    assert outcome.grid.trouble.hit == {}


def test_a_plan_is_seeded_and_has_every_kind() -> None:
    first = plan(3, 100, rounds=10, nodes=20)
    assert first == plan(3, 100, rounds=10, nodes=20) != plan(4, 100, rounds=10, nodes=20)
    assert Counter(fault.kind for fault in first) == dict.fromkeys(KINDS, 10)
    assert len({(fault.server_round, fault.node) for fault in first}) == 100


@pytest.mark.slow
def test_a_few_of_every_kind(tmp_path: Path) -> None:
    small = ["rounds=5", "data.clients=8", "simulation.nodes=4", "model.pretrain.epochs=1"]
    outcome = go(tmp_path / "run", plan(1, 20, rounds=5, nodes=4), *small)
    check(outcome, *small)
    assert set(outcome.grid.happened) >= set(KINDS) - {"damage"}
    assert [line["round"] for line in outcome.rounds] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_three_hundred_faults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calm = go(tmp_path / "calm", [])
    check(calm)
    assert {len(uploads) for uploads in calm.grid.came.values()} == {ROUNDS}
    caplog.set_level(logging.WARNING, logger="fedpers")
    before = time.time()
    wild = go(tmp_path / "wild", plan(0, FAULTS, rounds=ROUNDS, nodes=NODES))
    assert 0 <= time.time() - before < 600  # the clock is right again
    check(wild)
    assert len(wild.rounds) == ROUNDS and not any("skipped" in line for line in wild.rounds)
    happened = wild.grid.happened
    assert set(happened) == set(KINDS) and sum(happened.values()) > 0.9 * FAULTS, happened
    # A fault costs whom it hits that round, and is named.
    failed = [line["failed"] for line in wild.rounds]
    answered = [line["answered"] for line in wild.rounds]
    assert all(a + len(f) >= CLIENTS for a, f in zip(answered, failed, strict=True))
    assert min(answered) >= CLIENTS - 2 * FAULTS / ROUNDS
    assert CLIENTS * ROUNDS - sum(answered) < 2 * FAULTS
    reasons = " ".join(reason for line in failed for reason in line.values())
    for text in ("breaks down", "No space left", "no answer within 0.2 s", "there is no node"):
        assert text in reasons, text
    accuracy = [outcome.report["accuracy"]["personal"]["mean"] for outcome in (calm, wild)]
    assert accuracy[0] > 0.6 and abs(accuracy[0] - accuracy[1]) <= 0.02, accuracy
    print(accuracy, [outcome.report["privacy"]["epsilon_max"] for outcome in (calm, wild)])
