"""Each client's training, validation and test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedpers.config import Config
from fedpers.data.examples import Table
from fedpers.errors import ConfigError
from fedpers.seeding import numpy_generator, seed_for

Rows = NDArray[np.int64]
TRAIN, VAL, TEST, DROPPED = range(4)


@dataclass(frozen=True)
class Split:
    """A client's rows of the table, each ascending; disjoint, and each may be empty."""

    train: Rows
    val: Rows
    test: Rows


def split_rows(
    dealt: Mapping[str, Rows], table: Table, config: Config, test_fraction: float
) -> dict[str, Split]:
    """Split each client's rows by ``data.split``.

    ``random``: by a seeded shuffle of each client's rows, at least one for testing of two.
    ``blocks``: contiguous, first training, then validation, then test, with one row dropped at
    each joint; in each recording of each natural client where the table says which those are,
    else in what each client holds. ``group``: whole groups, each on the same side for all
    clients; the side hangs on the seed and the group's name alone.

    Args:
        test_fraction: ``data.test_fraction``, or 0 where a client's test rows are given.

    Raises:
        ConfigError: ``group`` without groups.
    """
    data, seed = config.data, config.seed
    if data.split == "random":
        splits = {}
        for client, rows in dealt.items():
            shuffled = numpy_generator(seed, "data", "split", client).permutation(rows)
            parts = cut(shuffled, data.val_fraction, test_fraction)
            splits[client] = Split(*(np.sort(part) for part in parts))
        return splits
    if data.split == "group":
        side = group_sides(table, config, test_fraction)
    else:
        side = np.full(len(table), DROPPED)
        for rows in _stretches(dealt, table):
            parts = cut(rows, data.val_fraction, test_fraction, gap=1)
            for number, part in zip((TRAIN, VAL, TEST), parts, strict=True):
                side[part] = number
    return {
        client: Split(*(rows[side[rows] == number] for number in (TRAIN, VAL, TEST)))
        for client, rows in dealt.items()
    }


def cut(rows: Rows, val: float, test: float, gap: int = 0) -> tuple[Rows, Rows, Rows]:
    """Cut ``rows`` into training, validation and test rows, in this order, ``gap`` apart.

    Fractions are of what the gaps leave, rounded; of two rows one is for testing and one for
    training, a single one is for training.

    >>> [part.tolist() for part in cut(np.arange(12), 0.2, 0.3, gap=1)]
    [[0, 1, 2, 3, 4], [6, 7], [9, 10, 11]]
    """
    n = len(rows)
    usable = n - gap * ((val > 0) + (test > 0))
    n_test = min(max(round(test * usable), 1), usable - 1) if test > 0 and usable > 1 else 0
    n_val = max(min(round(val * usable), usable - n_test - 1), 0)
    n_train = n - n_test - n_val - gap * ((n_val > 0) + (n_test > 0))
    after_train = n_train + (gap if n_val else 0)
    return rows[:n_train], rows[after_train : after_train + n_val], rows[n - n_test :]


def group_sides(table: Table, config: Config, test_fraction: float) -> NDArray[np.int64]:
    """The side of each row, [n], by a hash of the seed and its group's name.

    A group's side needs no other group's, so that clients that never met agree on it; the price
    is that fractions are met only on average over many groups.
    """
    groups, of = np.unique(group_names(table), return_inverse=True)
    seeds = [seed_for(config.seed, "data", "group", str(group)) for group in groups]
    draws = np.array(seeds) / 2**63  # uniform in [0, 1)
    held_out = test_fraction + config.data.val_fraction
    side = np.where(draws < test_fraction, TEST, np.where(draws < held_out, VAL, TRAIN))
    return side[of]


def group_names(table: Table) -> NDArray[np.str_]:
    """Which examples belong together, [n].

    Raises:
        ConfigError: the source does not say.
    """
    if table.group is None:
        cure = "set data.columns.group, or choose another split"
        raise ConfigError("data.split", "group", "a source with a group column", cure)
    return table.group


def rows_by(names: NDArray[np.str_] | NDArray[np.int64], rows: Rows) -> list[Rows]:
    """``rows`` by their ``names`` ([n], of all rows), in the order of the sorted names."""
    order = np.argsort(names[rows], kind="stable")
    _, counts = np.unique(names[rows], return_counts=True)
    return np.split(rows[order], np.cumsum(counts)[:-1])


def _stretches(dealt: Mapping[str, Rows], table: Table) -> list[Rows]:
    """Rows that follow one another: recordings of natural clients, else what clients hold."""
    names = [names for names in (table.client, table.group) if names is not None]
    if not names:
        return list(dealt.values())
    stretch = np.zeros(len(table), dtype=np.int64)
    for column in names:
        distinct, of = np.unique(column, return_inverse=True)
        stretch = stretch * len(distinct) + of
    return rows_by(stretch, np.sort(np.concatenate(list(dealt.values()))))
