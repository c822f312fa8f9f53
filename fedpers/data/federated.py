"""Federated data: one table in memory, and who owns which of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from fedpers.config import Config
from fedpers.data.arrays import bounded
from fedpers.data.examples import ClientData, Examples, Schema, Signature, Table
from fedpers.data.partition import NAMES, deal, natural_clients, partition_file, read_partition
from fedpers.data.public import draw_public, takes_from_clients
from fedpers.data.scaling import Scaling, check_scale, scaling_of
from fedpers.data.shift import check_shift, shifted
from fedpers.data.sources import load_table
from fedpers.data.splits import Rows, Split, group_names, split_rows
from fedpers.errors import ConfigError, DataError
from fedpers.seeding import numpy_generator
from fedpers.tasks.base import TASKS, Task, task_named


class FederatedData:
    """The examples of all clients and the public ones.

    Attributes:
        task: what is learned.
        given: what inputs are like before they are scaled, and
        scaling: how they are.
        signature: what a model reads.
        remark: on the scale of inputs, for the user, or "".
        clients: the ids of those that train: "0".."N-1", or natural clients' own names.
        held_out: the ids of those that never train (``data.holdout_clients``).
    """

    def __init__(
        self,
        table: Table,
        public: Rows,
        splits: Mapping[str, Split],
        config: Config,
        scaling: Scaling | None = None,
    ) -> None:
        """Keep ``table`` and, by row number, what is public and what each client has.

        Args:
            scaling: of whoever has public rows, where these owners have none.
        """
        table = with_task(table, config)
        assert table.task is not None
        targets = table.examples.y
        self.task: Task = table.task.fitted(targets[torch.from_numpy(public)])
        self._public, self._splits = public, splits
        self._config = config
        rng = numpy_generator(config.seed, "data", "holdout")
        chosen = rng.permutation(list(splits))[: config.data.holdout_clients].tolist()
        self.held_out = [client for client in splits if client in set(chosen)]
        self.clients = [client for client in splits if client not in set(chosen)]
        self.given, self.remark = table.signature, ""
        if scaling is None:
            scaling, self.remark = self._scaling(table)
        self.scaling, self._raw = scaling, table.examples.x
        x = scaling.apply(table.examples.x)
        self.signature = Signature(table.kind, tuple(x.shape[1:]))
        self._examples = Examples(x, self.task.scaled(targets))

    def _scaling(self, table: Table) -> tuple[Scaling, str]:
        x, trained = table.examples.x, [self._splits[client].train for client in self.clients]
        public, *train = (x[torch.from_numpy(rows)] for rows in (self._public, *trained))
        return scaling_of(self._config, table.kind, table.names, table.scaled, public, train)

    @cached_property
    def public(self) -> Examples:
        """The public examples; there may be none."""
        return self._take(self._public)

    @property
    def schema(self) -> Schema:
        """What data of others must be like to be learned together with these."""
        return Schema(self.signature, self.task.settings(), self.scaling)

    @property
    def inputs(self) -> torch.Tensor:
        """The inputs of all examples, whoever owns them, [n, ...]; not shifted."""
        return self._examples.x

    def client(self, client: str) -> ClientData:
        """The examples of one client, copied out of the table at each call; under privacy their
        inputs and targets are bounded by ``privacy.input_range``.

        Raises:
            DataError: there is no such client.
        """
        split = self._split(client)
        scaling = self.scaling_of(client) if self.scaling.centred else None
        parts = (self._take(rows, scaling) for rows in (split.train, split.val, split.test))
        return ClientData(*(shifted(examples, self._config, client) for examples in parts))

    def scaling_of(self, client: str) -> Scaling:
        """How one client's inputs are scaled.

        Raises:
            DataError: there is no such client, and it matters.
        """
        if not self.scaling.centred:
            return self.scaling
        return self.scaling.of_client(self._raw[torch.from_numpy(self._split(client).train)])

    def size(self, client: str) -> int:
        """How many training examples one client has.

        Raises:
            DataError: there is no such client.
        """
        return len(self._split(client).train)

    def _split(self, client: str) -> Split:
        if client not in self._splits:
            first, *_, last = [*self._splits, *self._splits]
            raise DataError(f"client: got {client!r}, takes one of {first!r} to {last!r}")
        return self._splits[client]

    def _take(self, rows: Rows, scaling: Scaling | None = None) -> Examples:
        taken, privacy = self._examples.take(torch.from_numpy(rows)), self._config.privacy
        if scaling is not None:
            taken = Examples(scaling.apply(self._raw[torch.from_numpy(rows)]), taken.y)
        if privacy.enabled:
            bounded(taken.x, privacy.input_range)
            bounded(taken.y, privacy.input_range)
        return taken


def load_data(config: Config) -> FederatedData:
    """The examples of ``config.data``, dealt to clients and split, seeded by ``config.seed``.

    Under the partition ``devices`` they are the server's, all public: the clients' are on the
    devices.

    Raises:
        ConfigError: a setting that the source or another setting does not allow.
        DataError: data that cannot be read or used.
    """
    _check(config)
    table = with_task(only_clients(load_table(config), config), config)
    check_shift(config, table.signature)
    if config.data.split == "group":
        group_names(table)
    if config.data.partition.name == "devices":  # all of the server's data are public
        return FederatedData(table, np.arange(len(table)), {}, config)
    if config.data.partition.name == "file":
        public, splits = _own_partition(table, config)
    else:
        if config.data.partition.name == "natural":
            natural_clients(table)
        public, rest = draw_public(table, config, np.arange(len(table)))
        dealt = deal(table, rest, config)
        splits = split_rows(dealt, table, config, config.data.test_fraction)
    for side in ("train", "test"):
        if not any(len(getattr(split, side)) for split in splits.values()):
            fractions = "data.public_fraction, data.val_fraction and data.test_fraction"
            raise DataError(f"data: no client has a {side} example; change {fractions}")
    if config.data.holdout_clients >= len(splits):
        takes = f"an integer < {len(splits)}, the number of clients"
        raise ConfigError("data.holdout_clients", config.data.holdout_clients, takes)
    return FederatedData(table, public, _limited(dict(splits), config), config)


def only_clients(table: Table, config: Config) -> Table:
    """The examples of the natural clients in ``data.only``; all where it names none.

    Raises:
        ConfigError: naming one that is not there.
    """
    wanted = config.data.only
    if not wanted:
        return table
    owner = natural_clients(table)
    if missing := [name for name in wanted if name not in owner]:
        known = ", ".join(sorted(set(owner.tolist()))[:8])
        raise ConfigError("data.only", missing[0], f"names of natural clients: {known}, ...")
    rows = np.flatnonzero(np.isin(owner, wanted))
    group = None if table.group is None else table.group[rows]
    examples = table.examples.take(torch.from_numpy(rows))
    return replace(table, examples=examples, client=owner[rows], group=group)


def with_task(table: Table, config: Config) -> Table:
    """The table with the task that ``config.task`` names.

    Raises:
        ConfigError: the source makes another one.
        DataError: its targets are none of that task.
    """
    kind, params = task_named(config.task)
    if table.task is None:
        return replace(table, task=kind.of(table.examples.y, params))
    if not isinstance(table.task, kind):
        takes = f"{TASKS.name_of(type(table.task))}, which {config.data.name} is for"
        raise ConfigError("task.name", config.task.name, takes)
    return table


def _check(config: Config) -> None:
    """What can be seen to be wrong before anything is read."""
    data, name = config.data, config.data.partition.name
    if name not in NAMES:
        raise ConfigError("data.partition.name", name, f"one of {', '.join(NAMES)}")
    check_scale(config)
    if name == "file":
        partition_file(config)
    if name != "file" and data.val_fraction + data.test_fraction >= 1:
        takes = f"a number < {1 - data.test_fraction:g}, which data.test_fraction leaves"
        raise ConfigError("data.val_fraction", data.val_fraction, takes)
    if data.public_clients and name != "natural":
        takes = f"0 where data.partition.name is {name}, for clients are not natural"
        raise ConfigError("data.public_clients", data.public_clients, takes)
    if takes_from_clients(config) and config.privacy.enabled and not data.public_from_clients:
        takes = "0 with privacy where clients are natural, for public rows would be their own"
        cure = "set data.public_clients, or data.public_from_clients=true to make them public"
        raise ConfigError("data.public_fraction", data.public_fraction, takes, cure)


def _own_partition(table: Table, config: Config) -> tuple[Rows, dict[str, Split]]:
    """Public rows and clients' splits by the user's file, validation carved from training."""
    given = read_partition(config, len(table))
    used = np.zeros(len(table), dtype=bool)
    for split in given.values():
        used[np.concatenate([split.train, split.val, split.test])] = True
    if config.data.split != "random" and table.group is not None:
        used = np.isin(table.group, np.unique(table.group[used]))
    public, _ = draw_public(table, config, np.flatnonzero(~used))
    if any(len(split.val) for split in given.values()):
        return public, given
    trained = {client: split.train for client, split in given.items()}
    carved = split_rows(trained, table, config, test_fraction=0)
    return public, {k: replace(carved[k], test=split.test) for k, split in given.items()}


def _limited(splits: dict[str, Split], config: Config) -> dict[str, Split]:
    """At most ``data.max_train`` training and ``data.max_val`` validation rows for each client, a
    seeded choice."""
    for side, most in (("train", config.data.max_train), ("val", config.data.max_val)):
        for client, split in splits.items():
            if most is not None:
                rng = numpy_generator(config.seed, "data", f"max_{side}", client)
                chosen = np.sort(rng.permutation(getattr(split, side))[:most])
                own = {side: chosen}
                splits[client] = replace(split, **own)
    return splits
