"""Local-only training: the server has nothing to do, unless to add up by what clients choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedpers import choosing
from fedpers.channels.build import hides_updates
from fedpers.config import Config
from fedpers.data import FederatedData
from fedpers.discriminant import OWN
from fedpers.errors import ConfigError
from fedpers.tasks.classification import Classification
from strategies.base import PersonalizedStrategy, strategies


@dataclass
class LocalParams:
    """As on the clients."""

    choose: bool = False


@strategies.register("local")
class Local(PersonalizedStrategy):
    """Nothing is shared; the rounds only set the pace."""

    Params = LocalParams
    shares = ()

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """As the base; what has no updates has no channel that would hide a sum."""
        params = super().check(config, data)
        if params.choose and hides_updates(config):
            takes = "false where the server may read nothing, for local training has no channel"
            raise ConfigError("strategy.params.choose", True, takes)
        return params

    def settle(self, server_round: int) -> None:
        """Choose when to stop, if asked to, or discriminants instead."""
        if self.params.choose:
            discriminants = len(OWN) if isinstance(self.task, Classification) else 0
            size = len(choosing.rounds(self.config.rounds)) + discriminants
            self.known |= choosing.told(self.pools.choose("alone", size))
