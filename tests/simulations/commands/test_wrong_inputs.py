"""Wrong inputs of one's own table, through the command line: each is one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simulations.commands.cli import app

ROWS = "a,b,town,who,label\n" + "".join(
    f"{k},{k * k % 7},{'nw'[k % 2]},c{k % 3},{k // 3 % 2}\n" for k in range(30)
)
SETTINGS = """
rounds: 1
data:
  name: csv
  path: t.csv
  partition: {name: natural}
  columns: {features: [a, b], client: who, label: label}
model: {name: linear, lora: null}
strategy: {name: fedavg}
"""
FILES = [  # what is in the file, and what is said of it
    (ROWS.replace("\n7,", "\nseven,"), "a: got 'seven' in row 7 (from 0), takes a number"),
    (ROWS.replace("\n7,", '\n"7,5",'), "a: got '7,5' in row 7 (from 0), takes a number"),
    (ROWS.replace("\n7,", "\n,"), "inputs: got NaN, infinity or a number beyond float32 in row 7"),
    (ROWS.replace("\n7,", "\ninf,"), "inputs: got NaN, infinity"),
    (ROWS.replace("\n7,", "\n1e99,"), "inputs: got NaN, infinity"),
    (ROWS.replace(",", ";"), "data.separator: got ',', and one column 'a;b;town;who;label'"),
    (ROWS.replace(",", "\t"), "set data.separator=tab"),
    (ROWS.replace(",", "|"), "set data.separator='|'"),
    (ROWS.replace("a,b", "ä,b"), "cannot be read as text", "latin-1"),
    (ROWS, "cannot be read as text", "utf-16"),
    ("", "t.csv: cannot be read"),
    ("a,b,town,who,label\n", "t.csv"),
    ("1,2,n,c0,1\n" * 9, "data.columns.features: got 'a', takes a column of "),
    (ROWS + "1,2,n,c0,1,9,9\n", "t.csv: cannot be read"),
    (ROWS.replace(",0\n", ",0,9\n"), "rows have more cells than the header"),
    (ROWS.replace("c1", ""), "who: got nothing in row 1 (from 0)"),
    (ROWS.replace(",1\n", ",0\n"), "label: got the one class 0, takes at least two"),
    (ROWS.replace(",1\n", ",2\n"), "label: got classes 0, 2, takes 0, 1, ..., C-1 without gaps"),
    (ROWS.replace(",1\n", ",0.5\n"), "for numbers to predict set task.name=regression"),
    (ROWS.replace(",1\n", ",\n"), "label: got nothing in row 3"),
]
OVERRIDES = [
    ("data.path=no.csv", "error: data.path: got "),
    ("data.name=xlsx", "error: data.name: got 'xlsx', takes one of "),
    ("data.columns.features=[a,c]", "error: data.columns.features: got 'c', takes a column"),
    ("data.columns.features=[town,a]", "town: got 'n' in row 0 (from 0), takes a number"),
    ("data.columns.features=[]", "error: data.columns: got None, takes exactly one of"),
    ("data.columns.label=y", "error: data.columns.label: got 'y', takes a column"),
    ("data.columns.client=y", "error: data.columns.client: got 'y', takes a column"),
    ("data.columns.client=null", "natural"),
    ("data.columns.text=[town]", "takes exactly one of features, text and image"),
    ("data.columns.categories={town: [n]}", "error: data.columns.categories: got 'town'"),
    ("data.columns.categories={b: [1, 2]}", "takes one of 1, 2, as data.columns.categories"),
    ("data.columns.categories={b: 3}", "error: data.columns.categories"),
    ("data.columns.ranges={a: [3]}", "error: data.columns.ranges.a: got [3.0], takes [lowest"),
    ("data.columns.ranges={a: [x, 1]}", "error: data.columns.ranges"),
    ("data.scale=declared", "error: data.columns.ranges: got None, takes a range for each"),
    ("data.scale=standard", "error: data.scale: got 'standard', takes one of none, auto"),
    ("data.missing=zero", "error: data.missing: got 'zero', takes one of error, mean"),
    ("data.encoding=klingon", "cannot be read as text (unknown encoding: klingon)"),
    ("data.public_fraction=0.99", "error: data.public_fraction: got 0.99, takes a fraction"),
    ("data.public_clients=3", "error: data.public_clients: got 3, takes an integer < 3"),
    ("data.holdout_clients=3", "error: data.holdout_clients: got 3, takes an integer < 3"),
    ("data.shift=rotate", "error: data.shift: got 'rotate'"),
    ("data.split=group", "error: data.split"),
    ("model.name=cnn", "error: model.name: got 'cnn', takes linear or mlp or table for tabular"),
    ("model.lora.rank=2", "error: model.lora"),
    ("model.pretrain.task=labels data.public_fraction=0", "error: data.public_fraction: got 0.0"),
    ("task.name=ranking", "error: task.name: got 'ranking', takes one of "),
    ("simulation.gpus_per_node=0.5", "takes 0 with --backend serial; leave --backend out"),
    ("strategy.min_clients=9", "error: strategy.min_clients: got 9"),
]


def run(folder: Path, *overrides: str) -> str:
    (folder / "x.yaml").write_text(SETTINGS)
    result = CliRunner().invoke(app, ["run", "x.yaml", "--backend", "serial", *overrides])
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (folder / "runs").exists()
    return result.stderr


@pytest.mark.parametrize(("override", "line"), OVERRIDES)
def test_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(ROWS)
    assert line in run(tmp_path, *(override.split(" ") if " data." in override else [override]))


@pytest.mark.parametrize("given", FILES, ids=range(len(FILES)))
def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    text, line, *encoding = given
    written = "latin-1" if encoding == ["latin-1"] else "utf-8"
    (tmp_path / "t.csv").write_bytes(text.encode(written))
    more = [f"data.encoding={encoding[0]}"] if encoding == ["utf-16"] else []
    assert line in run(tmp_path, *more)


def test_what_is_compared_to_has_to_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(SETTINGS)
    given = ["compare", "x.yaml", "--strategies", "fedavg,ditto", "--against", "local"]
    result = CliRunner().invoke(app, given)
    line = "error: --against: got 'local', takes one of the methods compared: fedavg, ditto\n"
    assert (result.exit_code, result.stderr) == (2, line)


def test_a_hopeless_run_is_told_so_after_its_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = [f"{1e6 * rng.standard_normal()},1,n,c{k % 3},{k // 3 % 2}\n" for k in range(60)]
    (tmp_path / "t.csv").write_text("a,b,town,who,label\n" + "".join(rows))
    (tmp_path / "x.yaml").write_text(SETTINGS)
    given = ["run", "x.yaml", "--backend", "serial", "data.scale=none"]
    result = CliRunner().invoke(app, given)
    assert "this run is hopeless; stop it and scale the inputs (data.scale)" in result.stdout
    assert "is hopeless" not in CliRunner().invoke(app, given[:-1]).stdout
