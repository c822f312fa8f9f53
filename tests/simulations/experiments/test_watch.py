"""A run seen from outside, by its files."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedpers.config import load_config
from simulations.commands.cli import app
from simulations.experiments.watch import duration, read_state, view, watch


def write(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    with (folder / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def round_line(number: int, seconds: float, **figures: Any) -> dict[str, Any]:
    times = {"train": seconds - 1, "combine": 0.25, "evaluate": 0.75}
    return {"round": number, "answered": 4, "failed": {}, "seconds": times, **figures}


def client_line(number: int, client: str, right: int, n: int = 10) -> dict[str, Any]:
    correct = {"personal": right, "global": 5} if n else {}
    fixed, broke = ({"personal": max(0, d)} if n else {} for d in (right - 5, 5 - right))
    test = {"n": n, "correct": correct, "fixed": fixed, "broke": broke}
    return {"round": number, "client": client, "test": test}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of ten rounds, after the fourth."""
    folder = tmp_path / "the-run"
    folder.mkdir()
    config = load_config(None, ["rounds=10", "privacy.enabled=true", "privacy.epsilon=8"])
    (folder / "config.yaml").write_text(config.to_yaml())
    write(folder, "rounds", round_line(1, 3.0, loss=2.0, epsilon=1.0))
    write(folder, "rounds", round_line(2, 9.0, loss=1.5, epsilon=2.0))  # is run again
    write(folder, "rounds", *(round_line(k, 5.0, loss=1.0, epsilon=k / 4) for k in (2, 3)))
    failed = {**round_line(4, 7.0, loss=0.5, epsilon=1.25), "failed": {"x": "broken"}}
    write(folder, "rounds", failed)
    write(folder, "clients", *(client_line(2, c, 1) for c in "abcde"))
    write(folder, "clients", {"round": 4, "client": "x", "error": "broken"})
    rights = {"a": 2, "b": 4, "c": 6, "d": 8, "e": 10}
    write(folder, "clients", *(client_line(4, c, right) for c, right in rights.items()))
    write(folder, "clients", client_line(4, "f", 0, n=0))
    return folder


def shown(folder: Path) -> str:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(view(read_state(folder)))
    return console.export_text()


def test_how_a_run_stands_by_hand(run: Path) -> None:
    state = read_state(run)
    assert (state.done, state.evaluated, state.ended) == (4, 4, False)
    # Rounds of 3, 5, 5 and 7 seconds; six are left.
    assert state.left == pytest.approx(5 * 6)
    assert state.values("personal") == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert state.values("global") == [0.5] * 5 and state.values("local") == []
    text = shown(run)
    line = "round 4/10  4 clients  1 failed  loss 0.500  epsilon 1.25 of 8  about 30 s left"
    assert line in text
    # Of 20, 40, 60, 80, 100: the 10 % quantile is 28, the 90 % quantile is 92.
    row = next(line for line in text.splitlines() if "personal" in line)
    assert row.split()[1::2] == ["personal", "5", "60.0", "20.0", "28.0", "60.0", "92.0", "100.0"]


def test_a_run_that_has_just_begun(run: Path) -> None:
    for name in ("rounds", "clients"):
        (run / f"{name}.jsonl").unlink()
    state = read_state(run)
    assert (state.done, state.evaluated, state.left) == (0, None, None)
    assert "round 0/10" in shown(run) and "model" not in shown(run)


def test_a_line_that_is_being_written_is_left_for_later(run: Path) -> None:
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 5, "answ')
    assert read_state(run).done == 4


def test_seconds_since_the_last_line(run: Path) -> None:
    now = time.time()
    for file in run.iterdir():
        os.utime(file, (now - 500, now - 500))
    os.utime(run / "rounds.jsonl", (now - 200, now - 200))
    assert read_state(run).idle == pytest.approx(200, abs=5)
    assert "last line 3 min ago" in shown(run)


def test_once_by_the_command_line(run: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(run.parent), "--once"])
    assert result.exit_code == 0 and "the-run" in result.stdout and "round 4/10" in result.stdout
    wrong = CliRunner().invoke(app, ["watch", str(run / "no"), "--once"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: RUN: got ") and wrong.stderr.count("\n") == 1


def test_it_ends_with_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = threading.Thread(target=watch, args=(run,))
    seen.start()
    seen.join(0.2)
    assert seen.is_alive()
    write(run, "rounds", *(round_line(k, 5.0, loss=0.25) for k in range(5, 11)))
    (run / "report.json").write_text("{}")
    seen.join(10)
    assert not seen.is_alive()
    out = capsys.readouterr().out
    assert "round 10/10" in out and "ended" in out and f"files: {run}" in out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
