"""The recipes of docs/architecture.md, run as they stand in a fresh folder."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from simulations.commands.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


class Recipe(NamedTuple):
    """A section of the page.

    Attributes:
        files: their texts by name.
        commands: what it has one run, argument by argument.
    """

    files: dict[str, str]
    commands: list[list[str]]


def recipes() -> dict[str, Recipe]:
    """The sections below "How to add", by heading."""
    _, _, below = PAGE.partition("## How to add\n")
    found = {}
    for section in re.split(r"^### ", below, flags=re.MULTILINE)[1:]:
        files = dict(re.findall(r"```python (\S+)\n(.*?)```", section, re.DOTALL))
        shown = "".join(re.findall(r"```\n(PYTHONPATH=\. fedpers .*?)```", section, re.DOTALL))
        lines = shown.replace("\\\n", " ").splitlines()
        commands = [shlex.split(line.removeprefix("PYTHONPATH=. fedpers ")) for line in lines]
        found[section.partition("\n")[0]] = Recipe(files, commands)
    return found


RECIPES = recipes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of all recipes; configs and what was pre-trained are at hand."""
    for recipe in RECIPES.values():
        for name, text in recipe.files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """The report of the one run that a command makes."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    newest = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    report: dict[str, Any] = json.loads((newest / "report.json").read_text())
    return report


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.commands])
def test_a_recipe_works_as_written(folder: Path, name: str) -> None:
    for command in RECIPES[name].commands:
        report = run(folder, *command)
        assert report["failed"] is None
        scored = report[report["task"]["headline"]]
        assert scored["personal"] is not None or scored["global"] is not None


def test_every_file_is_used(folder: Path) -> None:
    used = " ".join(argument for r in RECIPES.values() for c in r.commands for argument in c)
    for recipe in RECIPES.values():
        for name in recipe.files:
            module = name.removesuffix(".py")
            others = " ".join(text for r in RECIPES.values() for text in r.files.values())
            assert f"{module}:" in used + others, name
