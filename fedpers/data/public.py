"""The public split: examples that no client owns."""

from __future__ import annotations

import numpy as np

from fedpers.config import Config
from fedpers.data.examples import Table
from fedpers.data.partition import natural_clients, sorted_names
from fedpers.data.splits import TRAIN, Rows, cut, group_sides, rows_by
from fedpers.errors import ConfigError
from fedpers.seeding import numpy_generator


def takes_from_clients(config: Config) -> bool:
    """Whether public rows are examples that clients own otherwise: those of a fraction where
    clients are natural. Where examples are dealt, what is set aside first was nobody's."""
    data = config.data
    natural = data.partition.name == "natural"
    return natural and not data.public_clients and data.public_fraction > 0


def draw_public(table: Table, config: Config, free: Rows) -> tuple[Rows, Rows]:
    """The public rows, and those of ``free`` that are left for clients; both ascending.

    ``data.public_clients`` whole natural clients, or else ``data.public_fraction`` of all
    examples. What a split keeps together is kept together here too. Under ``group``, whole
    groups are public; of public clients only what is not held out of other clients' training.
    Under ``blocks``, whole groups, or without groups a block at the end of each natural
    client's rows, with one row dropped at the joint. Else rows at random.

    Args:
        free: the rows that may be public.

    Raises:
        ConfigError: more is asked for than there is.
    """
    data = config.data
    rng = numpy_generator(config.seed, "data", "public")
    if data.public_clients:
        return _whole_clients(table, config, rng)
    wanted = round(data.public_fraction * len(table))
    if wanted == 0:
        return free[:0], free
    if wanted > len(free) or wanted == len(table):
        takes = f"a fraction <= {len(free) / len(table):.4g} that leaves clients some examples"
        raise ConfigError("data.public_fraction", data.public_fraction, takes, "lower it")
    if data.split != "random" and table.group is not None:
        groups = rows_by(table.group, free)
        groups = [groups[k] for k in rng.permutation(len(groups))]
        fit = np.cumsum([len(group) for group in groups]) <= wanted
        count = max(int(fit.sum()), 1)
        if sum(map(len, groups[:count])) == len(table):
            takes = "0 where all examples are of one group"
            raise ConfigError("data.public_fraction", data.public_fraction, takes)
        return _together(groups[:count]), _together(groups[count:])
    if data.split == "blocks" and table.client is not None:
        cuts = [cut(own, 0, data.public_fraction, gap=1) for own in rows_by(table.client, free)]
        return _together([end for _, _, end in cuts]), _together([start for start, _, _ in cuts])
    public = np.sort(rng.choice(free, wanted, replace=False))
    return public, np.setdiff1d(free, public, assume_unique=True)


def _whole_clients(table: Table, config: Config, rng: np.random.Generator) -> tuple[Rows, Rows]:
    data, owner = config.data, natural_clients(table)
    names = sorted_names(owner)
    if data.public_clients >= len(names):
        takes = f"an integer < {len(names)}, the number of natural clients"
        raise ConfigError("data.public_clients", data.public_clients, takes)
    public = np.isin(owner, rng.choice(names, data.public_clients, replace=False))
    rest = np.flatnonzero(~public)
    if data.split == "group":  # what others are tested on may not be learned from either
        public &= group_sides(table, config, data.test_fraction) == TRAIN
    return np.flatnonzero(public), rest


def _together(rows: list[Rows]) -> Rows:
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)
