"""Runs of other processes are followed by the lines that they write."""

from __future__ import annotations

from pathlib import Path
from queue import Queue

from simulations.experiments.following import following


def test_each_round_that_is_over_is_said_and_not_those_from_before(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    (first / "config.yaml").write_text("rounds: 7\n")
    (first / "rounds.jsonl").write_text("{}\n{}\n")
    said: Queue[str] = Queue()
    with following([first, second], said.put, every=0.01):
        with (first / "rounds.jsonl").open("a") as file:
            file.write("{}\n")
        assert said.get(timeout=10) == "a: round 3 of 7"
        second.mkdir()
        (second / "rounds.jsonl").write_text("{}\n{}")  # the second is being written
        assert said.get(timeout=10) == "b: round 1 of ?"
        (first / "report.json").write_text("{}")
        with (first / "rounds.jsonl").open("a") as file:
            file.write("{}\n")
    assert said.empty()
