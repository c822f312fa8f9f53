"""What the design says of the house, counted in its files."""

from __future__ import annotations

import re
from pathlib import Path

from clients.base import algorithms
from strategies.base import strategies

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedpers", "strategies", "clients", "simulations")


def files_that_name(words: str) -> set[str]:
    """The files of the packages in which one of ``words`` (a|b) stands as a word."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = [path for path in paths if re.search(rf"\b({words})\b", path.read_text())]
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_only_tasks_models_and_methods_know_of_classes() -> None:
    methods = {*algorithms.names(), *strategies.names()}
    named = {
        path
        for path in files_that_name("logits|num_classes|cross_entropy")
        if not path.startswith(("fedpers/tasks/", "fedpers/models/", "simulations/bench"))
        and Path(path).stem not in methods
    }
    assert named == {"fedpers/outputs.py"}  # which says what classification calls the scores
