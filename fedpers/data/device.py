"""The data of one device: a file of its own, one client, nothing public."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedpers.config import Config
from fedpers.data.examples import Task
from fedpers.data.federated import FederatedData
from fedpers.data.shift import check_shift
from fedpers.data.sources import load_table
from fedpers.data.splits import split_rows
from fedpers.errors import ConfigError, DataError

FORMATS = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}


def device_data(config: Config, client: str, path: Path, task: Task | None = None) -> FederatedData:
    """The examples in ``path``, split for training, validation and testing as the run's settings
    say.

    Args:
        config: the run's settings; its ``data.name`` and ``data.path`` are the server's.
        client: whose they are.
        path: an npz, csv or parquet file, with the columns that ``data.columns`` names.
        task: what the server's data make; the device's own need not hold every class.

    Raises:
        ConfigError: no such file, or of another format.
        DataError: it cannot be read, or does not fit the task.
    """
    if path.suffix not in FORMATS:
        takes = f"a file that ends in {', '.join(FORMATS)}"
        raise ConfigError("data (node config)", str(path), takes)
    if not path.is_file():
        raise ConfigError("data (node config)", str(path), "a file that is there")
    classes = config.data.columns.classes if task is None else task.num_classes
    columns = replace(config.data.columns, classes=classes)
    data = replace(config.data, name=FORMATS[path.suffix], path=str(path), columns=columns)
    own = replace(config, data=data)
    table = load_table(own)
    if task is not None and (table.kind, table.task.input_shape) != (task.kind, task.input_shape):
        got = f"{table.kind} {table.task.input_shape}"
        raise DataError(
            f"{path}: got {got}, takes {task.kind} {task.input_shape} as the server has"
        )
    check_shift(own, table.task)
    rows = np.arange(len(table))
    splits = split_rows({client: rows}, table, own, own.data.test_fraction)
    if not len(splits[client].train):
        raise DataError(f"{path}: no example is left for training; add some")
    return FederatedData(table, rows[:0], splits, own)
