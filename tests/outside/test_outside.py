"""Methods of others as packages from outside: short, and reported as what they are."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpers.config import load_config
from fedpers.errors import ConfigError
from simulations.backends.checks import check
from simulations.backends.serial import run_serial

HERE = Path(__file__).parent
NAMES = {"pfedhn": "PFedHN", "ifca": "Ifca", "perfedavg": "PerFedAvg"}
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


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("pfedhn", {"personal"}),  # what a server makes for one client is no global model
        ("ifca", {"personal"}),
        ("perfedavg", {"personal", "global", "gated"}),
    ],
)
def test_they_learn_and_are_reported_as_what_they_are(
    tmp_path: Path, name: str, modes: set[str]
) -> None:
    report = run(tmp_path / "run", name)
    accuracy = report["accuracy"]
    assert {mode for mode, found in accuracy.items() if found} == modes
    assert accuracy["personal"]["mean"] > 0.4  # of ten classes
    assert report["failed"] is None


def test_a_hypernetwork_goes_on_where_it_was(tmp_path: Path) -> None:
    run(tmp_path / "whole", "pfedhn")
    run(tmp_path / "halved", "pfedhn", "rounds=2")
    run(tmp_path / "halved", "pfedhn", resume=True)
    lines = [
        [json.loads(line) for line in (tmp_path / n / "clients.jsonl").read_text().splitlines()]
        for n in ("whole", "halved")
    ]
    assert lines[0][-6:] == lines[1][-6:]


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


def test_single_gradients_are_private(tmp_path: Path) -> None:
    """As many as are declared, in each round, at the noise that the budget asks for."""
    settings = ["privacy.enabled=true", "privacy.epsilon=8", "privacy.steps=3"]
    report = run(tmp_path / "run", "perfedavg", *settings)
    assert report["failed"] is None and 7.9 < report["privacy"]["epsilon_max"] <= 8
    ledgers = list((tmp_path / "run" / "state" / "ledgers").glob("*.json"))
    assert len(ledgers) == 6
    for path in ledgers:
        assert sum(row["steps"] for row in json.loads(path.read_text())["releases"]) == 3 * 2 * 3
