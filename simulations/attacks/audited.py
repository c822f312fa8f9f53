"""The clients' real code on examples of the auditor's choice, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from clients.node.host import ClientHost
from fedpers.config import Config
from fedpers.data import ClientData, Examples, FederatedData
from strategies.base import find_strategy


class Replaced(FederatedData):
    """Data in which some clients train on other examples, and are the only ones to train.

    Args:
        train: their training examples.
        test: their test examples, where these are replaced too.
    """

    def __init__(
        self,
        data: FederatedData,
        train: Mapping[str, Examples],
        test: Mapping[str, Examples] | None = None,
    ) -> None:
        vars(self).update(vars(data))
        self.clients, self.original, self.train, self.test = list(train), data, train, test or {}

    def client(self, client: str) -> ClientData:
        """The examples of one client."""
        own = self.original.client(client)
        return ClientData(
            self.train.get(client, own.train), own.val, self.test.get(client, own.test)
        )

    def size(self, client: str) -> int:
        """How many training examples one client has."""
        return len(self.client(client).train)


@contextmanager
def audited(config: Config) -> Iterator[ClientHost]:
    """A host of the clients as a run has it, its stores in a folder that is removed after."""
    strategy = find_strategy(config)
    with TemporaryDirectory(prefix="fedpers-audit-") as folder:
        # Its ledgers too: the audit releases nothing, and must use up nobody's budget.
        # On the CPU, where the attacks compute.
        simulation = replace(config.simulation, gpus_per_node=0.0)
        config = replace(config, state=None, simulation=simulation)
        names = strategy.param_names()
        yield ClientHost(config, strategy.client_side(), names, Path(folder) / "0")


def start_over(host: ClientHost, data: FederatedData) -> None:
    """Have ``host`` work on ``data``, with empty stores and ledgers."""
    host.stores = host.stores.with_name(str(int(host.stores.name) + 1))
    host.ledgers = host.stores / "ledgers"
    host.work_on(data)
