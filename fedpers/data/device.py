"""The data of one device: a file of its own, one client, nothing public."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedpers.config import Config
from fedpers.data.examples import Schema, Signature
from fedpers.data.federated import FederatedData
from fedpers.data.scaling import Scaling
from fedpers.data.shift import check_shift
from fedpers.data.sources import load_table
from fedpers.data.splits import split_rows
from fedpers.errors import ConfigError, DataError

FORMATS = {".npz": "npz", ".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


def device_data(
    config: Config, client: str, path: Path, schema: Schema | None = None
) -> FederatedData:
    """The examples in ``path``, split for training, validation and testing as the run's settings
    say.

    Args:
        config: the run's settings; its ``data.name`` and ``data.path`` are the server's.
        client: whose they are.
        path: an npz, csv, jsonl or parquet file, with the columns that ``data.columns`` names; or a
            folder of images, ``class/name.png``.
        schema: of the server's data; the device's own need not hold every class.

    Raises:
        ConfigError: no such file, or of another format.
        DataError: it cannot be read, or does not fit the server's model or task.
    """
    if path.suffix not in FORMATS and not path.is_dir():
        takes = f"a file that ends in {', '.join(FORMATS)}, or a folder of images"
        raise ConfigError("data (node config)", str(path), takes)
    if not path.exists():
        raise ConfigError("data (node config)", str(path), "a file that is there")
    name = "images" if path.is_dir() else FORMATS[path.suffix]
    data = replace(config.data, name=name, path=str(path))
    own = replace(config, data=data, task=schema.task if schema else config.task)
    table = load_table(own)
    scaling = schema.scaling if schema else Scaling()
    if schema is not None:
        width = len(scaling.mean)
        shape = (width,) if width else schema.signature.shape
        wanted = Signature(schema.signature.kind, shape)
        if table.signature != wanted:
            got, takes = (f"{s.kind} {s.shape}" for s in (table.signature, wanted))
            raise DataError(f"{path}: got {got}, takes {takes} as the server has")
    check_shift(own, table.signature)
    rows = np.arange(len(table))
    splits = split_rows({client: rows}, table, own, own.data.test_fraction)
    if not len(splits[client].train):
        raise DataError(f"{path}: no example is left for training; add some")
    return FederatedData(table, rows[:0], splits, own, scaling)
