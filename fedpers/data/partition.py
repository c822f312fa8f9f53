"""Who owns which examples: dealt by a partitioner, by nature, or by a user's own file."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedpers.config import Config, Data
from fedpers.data.arrays import read_arrays
from fedpers.data.examples import Table
from fedpers.data.splits import Rows, Split
from fedpers.errors import ConfigError, DataError
from fedpers.seeding import numpy_generator, seed_for

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

NAMES = (
    *("dirichlet", "pathological", "shard", "iid", "linear", "square", "exponential"),
    *("natural", "file", "devices"),
)
# flwr-datasets draws 11 times from Dirichlet before it gives up; we ask it this often.
ATTEMPTS = 20


def deal(table: Table, rows: Rows, config: Config) -> dict[str, Rows]:
    """Deal ``rows`` to clients: each client's rows by its id, ascending and disjoint.

    Clients are "0".."N-1", or have their own names under ``natural``. All but ``natural`` are
    done by the partitioners of flwr-datasets on the shuffled rows; a partitioner may leave rows
    over, which nobody gets.

    Raises:
        ConfigError: the rows cannot be dealt that way.
    """
    data = config.data
    if data.partition.name == "natural":
        owner = natural_clients(table)[rows]
        return {client: rows[owner == client] for client in sorted_names(owner)}
    if data.clients > len(rows):
        takes = f"an integer <= {len(rows)}, the examples that are not public"
        raise ConfigError("data.clients", data.clients, takes)
    shuffled = numpy_generator(config.seed, "data", "shuffle").permutation(rows)
    y = table.examples.y
    strata = y if table.task is None else table.task.strata(y)
    labels = strata.numpy()[shuffled]
    if data.partition.min_size is None:
        least = min(20, len(rows) // (4 * data.clients))
        data = replace(data, partition=replace(data.partition, min_size=least))
    dealt = _deal(labels, data, config.seed)
    return {str(k): np.sort(shuffled[index]) for k, index in enumerate(dealt)}


def _deal(labels: NDArray[np.int64], data: Data, seed: int) -> list[Rows]:
    """Positions in ``labels`` for each client, by a partitioner of flwr-datasets."""
    import datasets

    name, partition, classes = data.partition.name, data.partition, len(np.unique(labels))
    if name == "pathological" and partition.classes_per_client > classes:
        takes = f"an integer <= {classes}, the classes there are"
        raise ConfigError("data.partition.classes_per_client", partition.classes_per_client, takes)
    if name == "dirichlet" and not _min_size_met(labels, data, seed):
        raise _min_size_error(data, len(labels))
    columns = datasets.Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    for attempt in range(ATTEMPTS):
        partitioner = _partitioner(data, seed_for(seed, "data", "partition", attempt))
        partitioner.dataset = columns.with_format("numpy")
        try:
            with warnings.catch_warnings():  # about each failed draw; the last one is an error
                warnings.simplefilter("ignore")
                parts = [partitioner.load_partition(k) for k in range(data.clients)]
            return [np.asarray(part["row"][:], dtype=np.int64) for part in parts]
        except (ValueError, ZeroDivisionError):  # shards of no example divide by zero
            if name != "dirichlet":
                raise _deal_error(data, len(labels)) from None
    raise _min_size_error(data, len(labels))


def _partitioner(data: Data, seed: int) -> Partitioner:
    from flwr_datasets import partitioner as by

    clients, p = data.clients, data.partition
    match p.name:
        case "dirichlet":
            least = p.min_size or 0
            return by.DirichletPartitioner(clients, "label", p.alpha, least, seed=seed)
        case "pathological":
            return by.PathologicalPartitioner(clients, "label", p.classes_per_client, seed=seed)
        case "shard":
            return by.ShardPartitioner(clients, "label", p.shards_per_client, seed=seed)
        case "linear":
            return by.LinearPartitioner(clients)
        case "square":
            return by.SquarePartitioner(clients)
        case "exponential":
            return by.ExponentialPartitioner(clients)
        case _:
            return by.IidPartitioner(clients)


def _min_size_met(labels: NDArray[np.int64], data: Data, seed: int) -> bool:
    """Whether any of 500 draws of sizes meets ``min_size``.

    flwr-datasets needs 0.3 s a draw for 1,000 clients, so that its own failure takes a minute.
    """
    clients, p, counts = data.clients, data.partition, np.unique(labels, return_counts=True)[1]
    least = p.min_size or 0
    if least * clients > len(labels):
        return False
    rng = numpy_generator(seed, "data", "min_size")
    for _ in range(500):
        shares = rng.dirichlet([p.alpha] * clients, len(counts))
        ends = (np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64)
        if np.diff(ends, axis=1, prepend=0).sum(axis=0).min() >= least:
            return True
    return False


def _min_size_error(data: Data, n: int) -> ConfigError:
    takes = f"a size that {n} examples dealt to {data.clients} clients can meet"
    cure = "lower it or data.clients, or raise data.partition.alpha"
    return ConfigError("data.partition.min_size", data.partition.min_size, takes, cure)


def _deal_error(data: Data, n: int) -> ConfigError:
    keys = {"pathological": "classes_per_client", "shard": "shards_per_client"}
    key = keys.get(data.partition.name)
    takes = f"a number that gives each of {data.clients} clients some of {n} examples"
    if key is None:
        cure = f"lower it, or choose another data.partition.name than {data.partition.name}"
        return ConfigError("data.clients", data.clients, takes, cure)
    got = getattr(data.partition, key)
    return ConfigError(f"data.partition.{key}", got, takes, "lower it or data.clients")


def natural_clients(table: Table) -> NDArray[np.str_]:
    """Whose each example is by nature, [n].

    Raises:
        ConfigError: the source does not say.
    """
    if table.client is None:
        takes = "a source with a client column"
        cure = "set data.columns.client, or choose another data.partition.name"
        raise ConfigError("data.partition.name", "natural", takes, cure)
    return table.client


def sorted_names(names: NDArray[np.str_]) -> list[str]:
    """The distinct names, sorted; numbers by value, before other names."""
    distinct = [str(name) for name in np.unique(names)]
    return sorted(distinct, key=lambda s: (not s.isdigit(), len(s) if s.isdigit() else 0, s))


def partition_file(config: Config) -> Path:
    """The file of ``data.partition.path``: as it stands, or in the folder FEDPERS_DATA.

    Raises:
        ConfigError: neither is there.
    """
    named = config.data.partition.path
    if named is not None:
        for path in (Path(named), Path(os.environ.get("FEDPERS_DATA", "")) / named):
            if path.is_file():
                return path
    takes = "the path of a .npz file, for data.partition.name is file"
    raise ConfigError("data.partition.path", named, takes, "or a name in the folder FEDPERS_DATA")


def read_partition(config: Config, n: int) -> dict[str, Split]:
    """A user's own split of ``n`` rows: ``data.partition.path``, a ``.npz`` file.

    Arrays ``train_0``, ``test_0``, ``train_1``, ... hold row numbers; ``val_0``, ... are
    optional for all clients together, and empty here without them.

    Raises:
        ConfigError: ``data.clients`` is set to another number than the file has.
        DataError: the file cannot be read; an array is missing, holds no row numbers, or holds
            a row that another has too.
    """
    data, path = config.data, partition_file(config)
    arrays = read_arrays(path)
    clients = sum(name.startswith("train_") for name in arrays)
    sides = ("train", "val", "test") if "val_0" in arrays else ("train", "test")
    expected = {f"{side}_{k}" for k in range(clients) for side in sides}
    if clients == 0 or expected != arrays.keys():
        odd = ", ".join(sorted(expected ^ arrays.keys())[:4]) or "no arrays"
        takes = "train_0, test_0, train_1, ... (and val_0, ... for all or none)"
        raise DataError(f"{path}: got a mismatch at {odd}, takes arrays {takes}")
    if data.clients not in (clients, Data().clients):
        takes = f"{clients}, the clients of {path}"
        raise ConfigError("data.clients", data.clients, takes, "leave it out")
    seen = np.zeros(n, dtype=np.int64)
    for name, rows in arrays.items():
        if rows.ndim != 1 or (rows.dtype.kind not in "iu" and len(rows)):
            raise DataError(f"{path}: {name}: got {rows.dtype} {rows.shape}, takes row numbers")
        if len(rows) and (rows.min() < 0 or rows.max() >= n):
            got = f"rows {rows.min()}..{rows.max()}"
            raise DataError(f"{path}: {name}: got {got}, takes 0..{n - 1}; is it for other data?")
        np.add.at(seen, rows.astype(np.int64), 1)
    if seen.max() > 1:
        raise DataError(f"{path}: got row {seen.argmax()} twice, takes each once; drop one")
    found = {name: np.sort(rows.astype(np.int64)) for name, rows in arrays.items()}
    none = np.zeros(0, dtype=np.int64)
    return {
        str(k): Split(found[f"train_{k}"], found.get(f"val_{k}", none), found[f"test_{k}"])
        for k in range(clients)
    }
