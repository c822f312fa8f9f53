"""The Flower App that the launcher writes, and what its ServerApp leaves for the launcher."""

from __future__ import annotations

import json
import logging
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.config_utils import load_and_validate
from hypothesis import given
from hypothesis import strategies as st

from fedpers.errors import ConfigError, RunError
from simulations.backends.bundle import load_app, outcome_of, watched, write_bundle
from simulations.backends.serial import SerialGrid, _identity

TOYS = Path(__file__).parents[2] / "tools"


@given(value=st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x7f")))
def test_any_text_survives_the_run_config(tmp_path_factory: object, value: str) -> None:
    folder = tmp_path_factory.mktemp("app")  # type: ignore[attr-defined]
    write_bundle(
        folder,
        serverapp="a.b:app",
        clientapp="c.d:app",
        run_config={"run-dir": value},
        events=folder / "it's events",
        search=folder,
    )
    with (folder / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["tool"]["flwr"]["app"]["config"] == {"run-dir": value}


def test_flower_accepts_the_bundle(tmp_path: Path) -> None:
    write_bundle(
        tmp_path,
        serverapp="a.b:app",
        clientapp="c.d:app",
        run_config={"config": "x"},
        events=tmp_path / "e",
        search=tmp_path,
    )
    _, warnings = load_and_validate(tmp_path / "pyproject.toml")
    assert [w for w in warnings if "description" not in w and "license" not in w] == []


def test_a_users_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json").mkdir()  # must not hide the standard library's
    (tmp_path / "my_plugin.py").write_text("app = 'mine'\n")
    assert load_app("my_plugin:app", search=str(tmp_path)) == "mine"
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("error", "text", "user"),
    [
        (ConfigError("a", 1, "2"), "a: got 1, takes 2", True),
        (RunError("nobody is left"), "nobody is left", False),
        (ValueError("two\nlines"), "the ServerApp raised ValueError: two lines", False),
        (SystemExit(5), "the ServerApp raised SystemExit: 5", False),
    ],
)
def test_outcome(error: BaseException, text: str, user: bool) -> None:
    assert outcome_of(error) == {"ok": False, "error": text, "user": user}


def run_watched(events: Path) -> list[dict[str, object]]:
    grid = SerialGrid(load_app("toy_client:app", search=str(TOYS)), nodes=2)
    context = Context(1, 1, {}, RecordDict(), {"run-dir": "here"})
    log = logging.getLogger("fedpers")
    before = list(log.handlers)
    try:
        with _identity(run_id=1):
            watched("toy_server:app", events=str(events), search=str(TOYS))(grid, context)
    finally:
        log.handlers = before
        written = [json.loads(line) for line in events.read_text().splitlines()]
    return written


def test_what_is_logged_and_the_outcome_are_written(tmp_path: Path) -> None:
    *lines, outcome = run_watched(tmp_path / "events")
    assert {"level": logging.INFO, "text": "answers [40, 41]"} in lines
    assert outcome == {"outcome": {"ok": True}}


def test_a_system_exit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY", "exit")
    # Not a SystemExit, which Flower counts as success.
    with pytest.raises(RunError, match="SystemExit: 5"):
        run_watched(tmp_path / "events")
    last = (tmp_path / "events").read_text().splitlines()[-1]
    assert json.loads(last)["outcome"]["ok"] is False


def test_a_server_app_that_cannot_be_imported_is_an_outcome(tmp_path: Path) -> None:
    events = tmp_path / "events"
    app = watched("no_such_module:app", events=str(events), search=str(tmp_path))
    grid = SerialGrid(load_app("toy_client:app", search=str(TOYS)), nodes=1)
    with pytest.raises(ModuleNotFoundError):
        app(grid, Context(1, 1, {}, RecordDict(), {}))
    outcome = json.loads(events.read_text())["outcome"]
    assert "ModuleNotFoundError" in outcome["error"]
