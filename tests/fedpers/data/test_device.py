"""The data of one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpers.config import Config, TaskSettings, load_config
from fedpers.data import Schema, Signature, device_data
from fedpers.errors import ConfigError, DataError
from fedpers.tasks import Classification

SCHEMA = Schema(Signature("tabular", (2,)), Classification.numbered(5).settings())


def write_npz(path: Path, y: Any, width: int = 2) -> Path:
    x = np.random.default_rng(0).standard_normal((len(y), width)).astype(np.float32)
    np.savez(path, x=x, y=np.asarray(y))
    return path


def settings(*overrides: str) -> Config:
    """A server's: its own data are named there."""
    return load_config(None, ["data.name=npz", "data.path=/nowhere/public.npz", *overrides])


def test_a_device_need_not_hold_every_class(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", [1, 3] * 20)
    found = device_data(settings(), "clinic-7", path, SCHEMA)
    assert found.clients == ["clinic-7"] and found.held_out == [] and found.schema == SCHEMA
    own = found.client("clinic-7")
    sizes = [len(part) for part in (own.train, own.val, own.test)]
    assert sizes == [24, 6, 10]  # 15 % for validation, 25 % to test
    assert set(torch.cat([own.train.y, own.val.y, own.test.y]).tolist()) == {1, 3}
    assert len(found.public) == 0
    # One class alone is enough, too, and the number of classes may come from the settings.
    write_npz(path, [4] * 10)
    found = device_data(settings("data.columns.classes=6"), "a", path)
    assert found.task.outputs == 6


def test_the_split_is_the_same_every_time_and_the_clients_own(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", [0, 1] * 20)
    first, again = (device_data(settings(), "a", path, SCHEMA).client("a") for _ in range(2))
    assert torch.equal(first.train.x, again.train.x) and torch.equal(first.test.x, again.test.x)
    other = device_data(settings(), "b", path, SCHEMA).client("b")
    assert not torch.equal(first.train.x, other.train.x)


def test_csv_and_parquet(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"age": np.arange(20.0), "dose": np.ones(20), "outcome": [2, 4] * 10})
    frame.to_csv(tmp_path / "own.csv", index=False)
    frame.to_parquet(tmp_path / "own.parquet")
    columns = ["data.columns.features=[age,dose]", "data.columns.label=outcome"]
    for name in ("own.csv", "own.parquet"):
        own = device_data(settings(*columns), "a", tmp_path / name, SCHEMA).client("a")
        assert set(own.train.y.tolist()) == {2, 4} and len(own.train) == 12


@pytest.mark.parametrize(
    ("y", "line"),
    [
        ([0, 1, 5], r"own\.npz: y: got int64 such as 5, takes integers in 0\.\.4$"),
        ([0, -1, 1], r"own\.npz: y: got int64 such as -1, takes integers in 0\.\.4$"),
        (["a", "b"], r"own\.npz: y: got <U1 such as a, takes integers in 0\.\.4$"),
    ],
)
def test_a_class_that_the_task_does_not_have_is_refused(
    tmp_path: Path, y: list[Any], line: str
) -> None:
    path = write_npz(tmp_path / "own.npz", y)
    with pytest.raises(DataError, match=line):
        device_data(settings(), "a", path, SCHEMA)


def test_data_of_another_task_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", [0, 1] * 5, width=3)
    line = r"got tabular \(3,\), takes tabular \(2,\) as the server has"
    with pytest.raises(DataError, match=line):
        device_data(settings(), "a", path, SCHEMA)
    path = write_npz(tmp_path / "own.npz", [0, 1] * 5)
    image = Schema(Signature("image", (1, 8, 8)), SCHEMA.task)
    with pytest.raises(DataError, match=r"got tabular \(2,\), takes image \(1, 8, 8\)"):
        device_data(settings(), "a", path, image)


def test_a_file_that_is_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data \(node config\): got .*/no\.npz', takes a file"):
        device_data(settings(), "a", tmp_path / "no.npz", SCHEMA)
    (tmp_path / "own.txt").write_text("x")
    with pytest.raises(
        ConfigError, match=r"takes a file that ends in \.npz, \.csv, \.jsonl, \.parquet, or a"
    ):
        device_data(settings(), "a", tmp_path / "own.txt", SCHEMA)
    (tmp_path / "own.npz").write_bytes(b"no zip file")
    with pytest.raises(DataError, match=r"own\.npz: cannot be read"):
        device_data(settings(), "a", tmp_path / "own.npz", SCHEMA)


def test_a_devices_numbers_are_on_the_servers_scale(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", [14.0] * 10)
    task = TaskSettings("regression", {"mean": 10.0, "sd": 2.0, "name": "dose"})
    schema = Schema(Signature("tabular", (2,)), task)
    found = device_data(settings("task.name=regression"), "a", path, schema)
    assert found.client("a").train.y.tolist() == [2.0] * 6 and found.task.names == ("dose",)
    with pytest.raises(ConfigError, match=r"^task\.params\.mean: got None, .*declare"):
        device_data(settings("task.name=regression"), "a", path)


def test_a_devices_classes_are_found_by_the_servers_names(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", ["emu", "dog"] * 10)
    task = TaskSettings("classification", {"names": ["cat", "dog", "emu"]})
    found = device_data(settings(), "a", path, Schema(Signature("tabular", (2,)), task))
    assert set(found.client("a").train.y.tolist()) <= {1, 2} and found.task.outputs == 3
