"""Sources of examples by ``data.name``: a function from the settings to a ``Table`` each.

A new source is one function: register it here, or name it ``package.module:function``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedpers.config import Columns, Config
from fedpers.data.arrays import check_finite, read_npz, to_targets
from fedpers.data.examples import Examples, Table
from fedpers.data.images import check_images, folder_table
from fedpers.data.tables import check_columns, csv_table, dataset_table, jsonl_table, parquet_table
from fedpers.data.windows import statistics
from fedpers.errors import ConfigError, DataError, line_of
from fedpers.registry import Registry

Source = Callable[[Config], Table]
SOURCES: Registry[Source] = Registry(
    "source", key="data.name", package="fedpers.data", group="fedpers.sources"
)
FOLDER = "FEDPERS_DATA"
CONVABUSE = Columns(
    text=["prev_agent", "prev_user", "agent", "user"],
    label="abusive",
    client="annotator_id",
    group="text_id",
)


def load_table(config: Config) -> Table:
    """All examples of the source ``data.name``.

    Under privacy values that are not finite are let in, and bounded before they are used: an error
    would tell of them.

    Raises:
        ConfigError: an unknown source, a path or column that is not there.
        DataError: data that cannot be read or used.
    """
    if config.data.name.startswith("hub:"):
        table = _hub(config, config.data.name.removeprefix("hub:"), config.data.columns)
    else:
        table = SOURCES.get(config.data.name)(config)
    check_images(config, table.kind)
    if not config.privacy.enabled:
        where = config.data.path or config.data.name
        x, filled = table.examples.x, config.data.missing != "error" and table.kind == "tabular"
        check_finite(x.nan_to_num(nan=0.0) if filled else x, f"{where}: inputs")
        check_finite(table.examples.y.reshape(len(table), -1), f"{where}: targets")
    return table


@SOURCES.register("digits")
def digits(config: Config) -> Table:
    """1,797 digits of 8 x 8 pixels, 0..16 scaled to -1..1 (UCI, comes with scikit-learn)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float().div_(8).sub_(1).view(-1, 1, 8, 8)
    return Table("image", Examples(x, torch.from_numpy(labels).long()))


@SOURCES.register("diabetes")
def diabetes(config: Config) -> Table:
    """442 patients: age, sex, body mass index, blood pressure and six blood serum measurements,
    scaled; how far their diabetes had progressed a year later, 25 to 346 (Efron et al. 2004, comes
    with scikit-learn). Natural clients are the decades of age, by sex.
    """
    from sklearn.datasets import load_diabetes

    x, progression = load_diabetes(return_X_y=True)
    raw, _ = load_diabetes(return_X_y=True, scaled=False)
    # Each column of x has a sum of squares of 1: a spread of 1 suits networks better.
    inputs = torch.from_numpy(x).float().mul_(len(x) ** 0.5)
    client = np.array([f"sex {int(sex)}, {int(age) // 10 * 10}s" for age, sex in raw[:, :2]])
    task, y = to_targets(progression, "diabetes", Columns(label="progression"), config.task)
    names = tuple(load_diabetes().feature_names)
    scaled = tuple(range(len(names)))
    return Table("tabular", Examples(inputs, y), client, None, task, names, scaled)


@SOURCES.register("npz")
def npz(config: Config) -> Table:
    """Arrays ``x`` and ``y`` of ``data.path``; clients and groups by ``data.columns``."""
    columns, path = config.data.columns, _path(config)
    table = read_npz(path, columns, config.task)
    for key, found in (("client", table.client), ("group", table.group)):
        if found is None and (name := getattr(columns, key)):
            raise ConfigError(f"data.columns.{key}", name, f"the name of an array in {path}")
    return table


@SOURCES.register("csv")
def csv(config: Config) -> Table:
    """A csv file."""
    return csv_table(_path(config), config)


@SOURCES.register("parquet")
def parquet(config: Config) -> Table:
    """A parquet file."""
    return parquet_table(_path(config), config)


@SOURCES.register("images")
def images(config: Config) -> Table:
    """A folder of images, ``class/name.png`` or ``client/class/name.png``."""
    path = _path(config)
    if not path.is_dir():
        raise ConfigError("data.path", str(path), "a folder of images")
    return folder_table(path, config)


@SOURCES.register("jsonl")
def jsonl(config: Config) -> Table:
    """A file with a JSON object a line."""
    return jsonl_table(_path(config), config)


@SOURCES.register("folder")
def folder(config: Config) -> Table:
    """A folder that ``datasets.Dataset.save_to_disk`` wrote."""
    import datasets

    path = _path(config)
    try:
        dataset = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        takes = f"a folder that save_to_disk of Hugging Face datasets wrote ({line_of(error)})"
        raise ConfigError("data.path", str(path), takes) from None
    return dataset_table(dataset, config, path)


@SOURCES.register("fashion-mnist")
def fashion_mnist(config: Config) -> Table:
    """70,000 articles of clothing of 28 x 28 pixels, 10 classes (Zalando, MIT)."""
    file, repository = "fashion_mnist.npz", "zalando-datasets/fashion_mnist"
    if path := _local(file):
        return read_npz(path, task=config.task)
    return _hub(config, repository, Columns(image="image"), f"{_no(file)}, and ")


@SOURCES.register("ucihar")
def ucihar(config: Config) -> Table:
    """10,299 windows of 9 motion signals, 6 activities, 30 people, by recording (UCI, CC BY).

    Windows overlap by half: split them by ``blocks`` or ``group``, never at random.
    """
    columns = Columns(client="subject", group="recording")
    return read_npz(_only_local("ucihar.npz"), columns, config.task)


@SOURCES.register("ucihar-features")
def ucihar_features(config: Config) -> Table:
    """The same windows as 99 numbers each: 11 statistics of each signal."""
    table = ucihar(config)
    x = torch.cat([statistics(piece) for piece in torch.split(table.examples.x, 1024)])
    return replace(table, kind="tabular", examples=Examples(x, table.examples.y))


@SOURCES.register("convabuse")
def convabuse(config: Config) -> Table:
    """12,768 judgements by 8 annotators whether a user abuses a chat bot (CC BY).

    Cercas Curry, Abercrombie and Rieser, EMNLP 2021. Several annotators judge each text: split
    by ``group``, never at random.
    """
    path = _only_local("convabuse.csv")
    return csv_table(path, config, CONVABUSE)


def _path(config: Config) -> Path:
    path = config.data.path
    if path is not None and (found := Path(path) if Path(path).exists() else _local(path)):
        return found
    takes = f"the path of something to read as {config.data.name}, here or in the folder {FOLDER}"
    raise ConfigError("data.path", path, takes)


def _local(file: str) -> Path | None:
    """``file`` in the folder of the user's data sets, if it is there."""
    path = Path(os.environ.get(FOLDER, "")).expanduser() / file
    return path if os.environ.get(FOLDER) and path.is_file() else None


def _only_local(file: str) -> Path:
    if path := _local(file):
        return path
    hub = "and the Hugging Face hub has no copy in this layout"
    raise DataError(f"data.name: {_no(file)}, {hub}; put the file there and set {FOLDER}")


def _no(file: str) -> str:
    return f"no {file} in the folder {FOLDER} (got {os.environ.get(FOLDER) or 'not set'})"


def _hub(config: Config, name: str, columns: Columns, before: str = "") -> Table:
    """All splits of a data set on the Hugging Face hub, together."""
    import datasets

    check_columns(columns)
    try:
        dataset = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data.name: {before}no {name} from the Hugging Face hub ({line_of(error)}); "
            f"connect to the network, or use a file of your own (npz, csv, parquet, folder)"
        ) from None
    return dataset_table(dataset, config, name, columns)
