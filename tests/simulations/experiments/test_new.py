"""A config for a table of one's own: what it says of the columns, and that it runs as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from fedpers.config import load_config
from fedpers.data import load_data
from simulations.commands.cli import app
from simulations.experiments.references import fitted


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def odd(n: int = 240) -> dict[str, Any]:
    """Three scales, a constant, what is missing, text labels, an index and free text."""
    rng = np.random.default_rng(7)
    a = rng.standard_normal((n, 3))
    age = [f"{40 + 10 * v:.0f}" if k % 7 else "" for k, v in enumerate(a[:, 2])]
    return {
        "id": np.arange(n),
        "income": 3e6 + 1e6 * a[:, 0],
        "tiny": 1e-6 * a[:, 1],
        "age": age,
        "constant": 7,
        "town": rng.choice(["north", "south, east"], n),
        "note": [f"note {k}" for k in range(n)],
        "clinic": [f"Klinik {k % 3}" for k in range(n)],
        "outcome": np.where(a[:, 0] + a[:, 1] > 0, "ill", "well"),
    }


def new(folder: Path, rows: dict[str, Any], *more: str, **form: Any) -> Result:
    pd.DataFrame(rows).to_csv(folder / "data.csv", index=False, **form)
    given = ("--from", str(folder / "data.csv"), "--label", "outcome", *more)
    return invoke("new", str(folder / "mine"), *given)


@pytest.mark.parametrize("form", [{}, {"sep": ";"}, {"sep": "\t", "encoding": "utf-16"}])
def test_what_the_columns_are(tmp_path: Path, form: dict[str, str]) -> None:
    assert new(tmp_path, odd(), "--client", "clinic", **form).exit_code == 0
    config = load_config(tmp_path / "mine" / "config.yaml")
    assert config.data.columns.features == ["income", "tiny", "age", "town"]
    assert config.data.columns.categories == {"town": ["north", "south, east"]}
    assert (config.data.missing, config.data.scale) == ("indicator", "sums")
    text = (tmp_path / "mine" / "config.yaml").read_text()
    for left in ("id: it numbers the rows", "constant: it is the same", "note: text of 240"):
        assert f"# left out, {left}" in text
    data = load_data(config)
    assert data.clients == ["Klinik 0", "Klinik 1", "Klinik 2"]
    assert data.task.names == ("ill", "well")


def test_it_is_checked_and_runs_as_it_is_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new(tmp_path, odd(), "--client", "clinic").exit_code == 0
    checked = invoke("check", "mine/config.yaml")
    assert checked.exit_code == 0, checked.stderr
    for said in (
        "240 rows of 3 clients, and 0 public; tabular",
        "35 cells missing, in 1 columns",
        "features: standardised by sums over the clients’",
        "no test row is among the training rows",
        "least detectable: ",
        "epsilon 8 for 30 steps",
        "a scaled linear model has, in accuracy on validation rows: central ",
        "settings: they fit",
    ):
        assert said in checked.stdout, said
    assert invoke("run", "mine/config.yaml", "--backend", "serial").exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    report = json.loads((run / "report.json").read_text())
    assert report["inputs"]["how"] == "sums" and report["task"]["names"] == ["ill", "well"]
    data = load_data(load_config("mine/config.yaml"))
    owned = [data.client(client) for client in data.clients]
    score = np.mean(
        [fitted(own.train).score(own.test.x.numpy(), own.test.y.numpy()) for own in owned]
    )
    assert report["accuracy"]["personal"]["mean"] >= score - 0.03


def test_numbers_and_classes_from_one_and_rows_that_nobody_owns(tmp_path: Path) -> None:
    rows = odd()
    assert new(tmp_path, {**rows, "outcome": rows["income"]}).exit_code == 0
    config = load_config(tmp_path / "mine" / "config.yaml")
    assert config.task.name == "regression" and config.data.clients == 6
    (tmp_path / "mine" / "config.yaml").unlink()
    assert new(tmp_path, {**rows, "outcome": np.arange(240) % 3 + 1}).exit_code == 0
    data = load_data(load_config(tmp_path / "mine" / "config.yaml"))
    assert data.task.names == ("1", "2", "3")
    (tmp_path / "mine" / "config.yaml").unlink()
    assert new(tmp_path, {**rows, "outcome": [1.0, 2.0] * 120}).exit_code == 0
    assert load_data(load_config(tmp_path / "mine" / "config.yaml")).task.names == ("1", "2")


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        ({}, ["--label", "result"], "error: --label: got 'result', takes a column of "),
        ({}, ["--client", "who"], "error: --client: got 'who', takes a column of "),
        ({}, ["--client", "outcome"], "error: --client: got 'outcome', takes another column"),
        ({"outcome": "ill"}, [], "--label outcome: got the one value 'ill'"),
        ({"outcome": ["", *["a", "b"] * 119, "a"]}, [], "--label outcome: nothing in 1 rows"),
        ({"outcome": [f"o{k}" for k in range(240)]}, [], "got 240 different texts"),
        ({"outcome": ["a", "b"] * 120}, ["--task", "regression"], "--label outcome: got text"),
        ({"clinic": "one"}, ["--client", "clinic"], "got one client, takes at least two"),
        ({"clinic": ["", *["x", "y"] * 119, "x"]}, ["--client", "clinic"], "nothing in 1 rows"),
        ({}, ["--from", "no.csv"], "error: --from: got 'no.csv', takes a csv file"),
        ({}, ["--from", "."], "error: --from: got '.', takes a csv file"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(
    tmp_path: Path, change: dict[str, Any], options: list[str], line: str
) -> None:
    result = new(tmp_path, {**odd(), **change}, *options)
    assert result.exit_code == 2 and line in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,outcome\n1,x\n2,y\n", "got 2 rows, takes at least 10"),
        ("a,outcome\n" + "1,x\n1,y\n" * 8, "no column to learn from (a: it is the same"),
        ("outcome\n" + "x\ny\n" * 8, "no column to learn from (there is no other)"),
        ("a,outcome\n1,x\n2,y,z\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_files_that_hold_nothing(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "data.csv").write_text(text)
    given = ("--from", str(tmp_path / "data.csv"), "--label", "outcome")
    result = invoke("new", str(tmp_path / "mine"), *given)
    assert result.exit_code == 2 and line in result.stderr and result.stderr.count("\n") == 1


def test_a_config_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    assert new(tmp_path, odd()).exit_code == 0
    again = new(tmp_path, odd())
    assert again.exit_code == 2 and "takes a folder without config.yaml" in again.stderr


def test_test_rows_that_are_trained_on_are_told(tmp_path: Path) -> None:
    rows = {name: list(values)[:60] * 4 for name, values in pd.DataFrame(odd()).items()}
    assert new(tmp_path, {**rows, "id": 1}).exit_code == 0
    checked = invoke("check", str(tmp_path / "mine" / "config.yaml"))
    assert "test rows are among the training rows as well; set data.columns" in checked.stdout


def test_clients_that_differ_are_held_together_less(tmp_path: Path) -> None:
    rows = odd()
    assert new(tmp_path, rows, "--client", "clinic").exit_code == 0
    alike = load_config(tmp_path / "mine" / "config.yaml").strategy.params["mu"]
    (tmp_path / "mine" / "config.yaml").unlink()
    up = (rows["income"] > 3e6) ^ (np.arange(240) % 3 == 0)  # the first clinic's is turned round
    rows["outcome"] = np.where(up, "ill", "well")
    assert new(tmp_path, rows, "--client", "clinic").exit_code == 0
    assert load_config(tmp_path / "mine" / "config.yaml").strategy.params["mu"] < alike
