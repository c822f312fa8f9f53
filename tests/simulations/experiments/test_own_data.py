"""Tables of one's own through ``fedpers new`` and ``fedpers run``, unchanged: at most 3 points
below a scaled linear model with the same rows, of all clients together or of each alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fedpers.config import load_config
from fedpers.data import ClientData, Examples, load_data
from simulations.commands.cli import app
from simulations.experiments.references import fitted

Frame = Callable[[], tuple[pd.DataFrame, str | None]]


def sklearn_frame(name: str, client: Callable[[Any], Any] | None = None) -> Frame:
    def frame() -> tuple[pd.DataFrame, str | None]:
        import sklearn.datasets

        rows = getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame
        if client is None:
            return rows, None
        return rows.assign(owner=client(rows)), "owner"

    return frame


def offsets() -> tuple[pd.DataFrame, str | None]:
    """Each client's device measures from another zero."""
    rng, who = np.random.default_rng(5), np.repeat(np.arange(6), 100)
    x = rng.standard_normal((600, 3))
    rows = pd.DataFrame(x + np.outer(1000 * who, [1, 0, 0]), columns=list("abc"))
    return rows.assign(owner=who, target=(x[:, 0] + x[:, 1] > 0).astype(int)), "owner"


def many_values() -> tuple[pd.DataFrame, str | None]:
    """A code with 120 values decides."""
    rng = np.random.default_rng(6)
    code, x, effect = rng.integers(0, 120, 1500), rng.standard_normal(1500), rng.normal(0, 1.5, 120)
    target = np.where(effect[code] + x > 0, "in", "out")
    named = [f"k{value:03d}" for value in code]
    return pd.DataFrame({"code": named, "x": x, "target": target, "owner": code % 5}), "owner"


def outliers() -> tuple[pd.DataFrame, str | None]:
    """One row in a hundred has a value of 10^9."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((500, 4))
    target = (x[:, 0] + x[:, 1] > 0).astype(int)
    x[::97, 0] = 1e9
    rows = pd.DataFrame(x, columns=list("abcd"))
    return rows.assign(owner=rng.integers(0, 5, 500), target=target), "owner"


def radius(rows: Any) -> Any:
    return pd.qcut(rows["mean radius"], 8, labels=False)


REAL = {
    "iris": sklearn_frame("iris"),
    "wine": sklearn_frame("wine"),
    "breast cancer": sklearn_frame("breast_cancer"),
    "breast cancer by size": sklearn_frame("breast_cancer", radius),
    "digits": sklearn_frame("digits"),
    "diabetes": sklearn_frame("diabetes"),
}
ODD = {"many values": many_values, "outliers": outliers}


def run(folder: Path, frame: Frame) -> tuple[float, list[float]]:
    """The personal models' figure, and those of linear models: accuracies, or minus RMSEs in
    spreads."""
    rows, client = frame()
    rows.to_csv(folder / "data.csv", index=False)
    given = ["--from", "data.csv", "--label", "target", *(["--client", client] if client else [])]
    for command in (["new", "mine", *given], ["run", "mine/config.yaml", "--backend", "serial"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.stderr
    (path,) = (folder / "runs").iterdir()
    report = json.loads((path / "report.json").read_text())
    assert report["data"] == "data.csv"
    data = load_data(load_config("mine/config.yaml"))
    owned = [data.client(name) for name in data.clients]
    own = float(report[report["task"]["headline"]]["personal"]["mean"])
    if data.task.outputs == 1:
        own = -own / data.task.scale[1]  # type: ignore[attr-defined]
    x, y = (torch.cat([getattr(one.train, side) for one in owned]) for side in ("x", "y"))
    together, tested = fitted(Examples(x, y)), [one for one in owned if len(one.test)]
    central = np.mean([score(together, one) for one in tested])
    local = np.mean([score(fitted(one.train), one) for one in tested])
    return own, [float(central), float(local)]


def score(model: Any, own: ClientData) -> float:
    x, y = own.test.x.numpy(), own.test.y.numpy()
    if own.test.y.is_floating_point():
        return -float(np.sqrt(np.mean((model.predict(x) - y) ** 2)))
    return float(model.score(x, y))


def check(folder: Path, frame: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    own, linear = run(folder, frame)
    assert own >= max(linear) - 0.03, (own, linear)


def test_devices_that_measure_from_another_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path, offsets, monkeypatch)
    assert load_config("mine/config.yaml").data.centre


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, REAL[name], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_odd_tables(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(tmp_path, ODD[name], monkeypatch)
