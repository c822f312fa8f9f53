"""What a node keeps for its clients, and its half of the channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from clients.base import LocalAlgorithm, algorithms
from clients.node.device import Device
from clients.node.failures import Reasons
from clients.node.store import ClientStore
from clients.policy.policy import read_policy
from fedpers.channels.build import node_channel
from fedpers.channels.node import ClientSide
from fedpers.config import Config, config_from_json
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Layout, Parts
from fedpers.pooling import POOLED
from fedpers.privacy import noise
from fedpers.stats import Stat

HELD = "held"


class Keeper:
    """The clients' stores and the channel, without data or model, which take seconds to load.

    Args:
        config: the run's settings.
        stores: the folder of the clients' stores.
        device: where the node is one.
        population: how many clients there are, for a key that is made for the run.
        method: its client side, of which the channel asks what it derives and compares.
        sources: of what has to be secret; None for what ``privacy.deterministic_for_tests`` says.

    Raises:
        ConfigError: a device is to draw its noise from the run's seed.

    Attributes:
        hosted: the clients of the node, and
        declared: the parts that the method sends, and
        reports: the names of its numbers; all empty where no data and no model are loaded.
    """

    def __init__(
        self,
        config: Config,
        stores: Path,
        device: Device | None,
        population: int,
        method: type[LocalAlgorithm],
        sources: noise.Sources | None = None,
    ) -> None:
        self.config, self.stores, self.device = config, stores, device
        self.hosted: Sequence[str] = ()
        self.declared: Mapping[str, Layout] = {}
        self.reports: Sequence[Stat] = ()
        self.polls: Sequence[Stat] = ()
        self.reasons = Reasons.at(config, device, stores)
        known = config.privacy.deterministic_for_tests
        if known and config.privacy.enabled and device is not None:
            takes = "false on a device, whose noise the server would know"
            raise ConfigError("privacy.deterministic_for_tests", known, takes)
        self.sources = sources or noise.sources(known, config.seed)
        self.channel = node_channel(
            config,
            str(stores),
            population,
            self.sources,
            keys=device.keys if device else None,
            method=ClientSide((*method.derives, POOLED), method.weights_of),
            least=read_policy(device.policy).cohort if device and device.policy else 1,
        )

    def store(self, client: str) -> ClientStore:
        """What one client keeps; a device's is on its disk when a call returns."""
        return ClientStore(self.stores, client, durable=self.device is not None)

    def folder(self, client: str) -> Path:
        """The folder of one client's store."""
        return self.store(client).folder

    def hold(self, client: str, server_round: int, upload: Parts) -> None:
        """Keep an upload until its weight is known."""
        self.store(client).save_round(HELD, server_round, upload)

    def held(self, client: str, server_round: int) -> Parts:
        """The upload kept in a round.

        Raises:
            ClientError: there is none.
        """
        found = self.store(client).load_round(HELD, server_round)
        if not found:
            raise ClientError(f"no update of round {server_round} is kept here")
        return found


def stores_of(run_folder: str, device: Device | None) -> Path:
    """The folder of the clients' stores: a device's under its own state, whatever the server's."""
    if device is None:
        return Path(run_folder) / "state"
    return device.state / "runs" / Path(run_folder).name / "state"


@lru_cache(maxsize=1)
def keeper_of(settings: str, algorithm: str, run_folder: str, device: Device) -> Keeper:
    """A device's, for what needs no model."""
    device.claim()
    config, stores = config_from_json(settings), stores_of(run_folder, device)
    return Keeper(config, stores, device, 1, algorithms.get(algorithm))
