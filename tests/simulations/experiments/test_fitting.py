"""Settings found on the rows: a stable rate, and how far clients are held together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedpers.config import load_config
from fedpers.data import FederatedData, load_data
from simulations.experiments.fitting import MUS, best_mu, learning_rate


def data_of(folder: Path, x: np.ndarray[Any, Any], y: Any, who: Any) -> FederatedData:
    names = [f"c{k}" for k in range(x.shape[1])]
    rows = {**dict(zip(names, x.T, strict=True)), "y": y, "who": who}
    pd.DataFrame(rows).to_csv(folder / "t.csv", index=False)
    wanted = [
        *("data.name=csv", f"data.path={folder / 't.csv'}", "data.partition.name=natural"),
        *("data.public_fraction=0", "data.scale=sums", f"data.columns.features={names}"),
        *("data.columns.label=y", "data.columns.client=who"),
    ]
    return load_data(load_config(None, wanted))


def test_the_rate_is_the_usual_one_but_where_columns_are_many_and_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, who = np.arange(200) % 2, np.arange(200) // 2 % 5
    few = data_of(tmp_path, rng.standard_normal((200, 3)), y, who)
    assert learning_rate(few, 16) == 0.05
    common = rng.standard_normal((200, 1)) + 0.01 * rng.standard_normal((200, 100))
    alike = data_of(tmp_path, common, y, who)
    # All 100 columns are one: their curvature is 100, half of it for classes, and a batch's more.
    assert 0.005 <= learning_rate(alike, 16) <= 0.02


def test_clients_that_differ_are_held_together_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, who = rng.standard_normal((400, 3)), np.arange(400) // 2 % 8
    same = data_of(tmp_path, x, (x[:, 0] + rng.standard_normal(400) > 0).astype(int), who)
    mu, loss = best_mu(same)
    assert mu == MUS[0] and 0 < loss < 0.7
    turned = np.where(who % 2, 1, -1) * x[:, 0] > 0
    mu, loss = best_mu(data_of(tmp_path, x, turned.astype(int), who))
    assert mu == MUS[-1] and loss < 0.5
