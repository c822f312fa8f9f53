"""Methods of others as packages from outside: short, and reported as what they are."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.parts import Parts
from simulations.backends.checks import check
from simulations.backends.serial import run_serial
from strategies.base import find_strategy

HERE = Path(__file__).parent
NAMES = {"pfedhn": "PFedHN", "ifca": "IFCA", "perfedavg": "PerFedAvg"}
SMALL = (
    *("data.clients=6", "evaluation.every=9", "evaluation.local_baseline=false", "rounds=3"),
    *("evaluation.outside=20", "evaluation.adapters=false", "model.pretrain.task=none"),
    "training.lr_decay=none",
)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(HERE)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def run(folder: Path, name: str, *overrides: str, resume: bool = False) -> dict[str, Any]:
    settings = [*SMALL, f"strategy.name={name}:{NAMES[name]}", "strategy.params={}", *overrides]
    config = load_config(Path("configs/digits.yaml"), settings)
    check(config)
    run_serial(config, folder, resume=resume, show=lambda line: None)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def code_lines(path: Path) -> int:
    """Lines of code: none that are empty, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    lines = {k for k, line in enumerate(text.splitlines(), 1) if line.strip()}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_short(name: str) -> None:
    assert code_lines(HERE / f"{name}.py") < 60


def lines_of(folder: Path, name: str = "rounds") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("pfedhn", {"personal"}),  # what a server makes for one client is no global model
        ("ifca", {"personal"}),  # nor is one of several
        ("perfedavg", {"personal", "global", "gated"}),
    ],
)
def test_they_learn_and_are_reported_as_what_they_are(
    tmp_path: Path, name: str, modes: set[str]
) -> None:
    report = run(tmp_path / "run", name, "data.holdout_clients=2", "evaluation.every=1", "rounds=4")
    accuracy, rounds = report["accuracy"], lines_of(tmp_path / "run")
    assert {mode for mode, found in accuracy.items() if found} == modes
    assert accuracy["personal"]["mean"] > max(0.5, rounds[0]["personal"])  # of ten classes
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert report["failed"] is None
    newcomers = report["cold_start"]
    assert newcomers["20"]["mean"] > newcomers["0"]["mean"] > 0.15
    # The adapted model is the personal one, the one before its step the global one.
    if name == "perfedavg":
        assert accuracy["personal"]["mean"] != accuracy["global"]["mean"]
    for line in rounds:  # a run's files have the numbers of a method's own
        told = line.get("reports", {})
        assert len(told) == (4 if name == "ifca" else 0)
        assert all(found["cluster"] in (0, 1, 2) for found in told.values())


@pytest.mark.parametrize("name", NAMES)
def test_they_go_on_where_they_were(tmp_path: Path, name: str) -> None:
    run(tmp_path / "whole", name)
    run(tmp_path / "halved", name, "rounds=2")
    run(tmp_path / "halved", name, resume=True)
    whole, halved = (lines_of(tmp_path / n, "clients")[-6:] for n in ("whole", "halved"))
    assert whole == halved


def test_the_step_of_a_hypernetwork_by_hand() -> None:
    settings = [*SMALL, "strategy.name=pfedhn:PFedHN", "strategy.params={rate: 0.5, spread: 1}"]
    config = load_config(Path("configs/digits.yaml"), settings)
    data = load_data(config)
    server = find_strategy(config)(config, build_model(config, data), data)
    row = server.broadcast(1, "1")
    assert isinstance(row, Parts)
    drawn = torch.Generator().manual_seed(0)
    change = [0.1 * torch.randn(part.layout.size, generator=drawn) for part in row.values()]
    moved = zip(row.items(), change, strict=True)
    server.updates = {"1": Parts({n: part.like(part.vector - d) for (n, part), d in moved})}
    before = {
        name: tensor.clone()
        for name, tensor in server.state()[0]["hypernetwork"]["learned"].items()
    }
    server.refine(1)
    after = server.state()[0]["hypernetwork"]["learned"]
    # theta = C tanh(A v + a) + c, and what is left of the change at each step back.
    v, w = before["0.weight"][1], torch.cat(change)
    h = torch.tanh(before["1.0.weight"] @ v + before["1.0.bias"])
    back = (before["1.2.weight"].T @ w) * (1 - h**2)
    steps = {
        "1.2.bias": w,
        "1.2.weight": torch.outer(w, h),
        "1.0.bias": back,
        "1.0.weight": torch.outer(back, v),
        "0.weight": torch.zeros_like(before["0.weight"]),
    }
    steps["0.weight"][1] = before["1.0.weight"].T @ back
    for name, step in steps.items():
        torch.testing.assert_close(after[name], before[name] - 0.5 * step)


@pytest.mark.parametrize("name", ["pfedhn", "ifca"])
def test_a_channel_that_cannot_serve_them_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^strategy\.name: .* a method whose server only mixes"
    ) as refused:
        run(tmp_path / "run", name, "encryption.enabled=true")
    assert "\n" not in str(refused.value)


def test_what_no_noise_covers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^strategy\.name: ") as refused:
        run(tmp_path / "run", "ifca", "privacy.enabled=true")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_single_gradients_are_private(tmp_path: Path) -> None:
    """As many as are declared, in each round, at the noise that the budget asks for."""
    settings = ["privacy.enabled=true", "privacy.epsilon=8", "privacy.steps=3"]
    report = run(tmp_path / "run", "perfedavg", *settings)
    assert report["failed"] is None and 7.9 < report["privacy"]["epsilon_max"] <= 8
    ledgers = list((tmp_path / "run" / "state" / "ledgers").glob("*.json"))
    assert len(ledgers) == 6
    for path in ledgers:
        assert sum(row["steps"] for row in json.loads(path.read_text())["releases"]) == 3 * 2 * 3
