"""What clients and server call the vectors of which the server has the sum alone."""

from __future__ import annotations

from fedpers.config import Config
from fedpers.errors import ConfigError

POOLED = "pooled"
FRAME, MOMENTS = "frame", "moments"


def check_pools(config: Config, key: str, got: object, instead: str) -> None:
    """Refuse sums over all clients where nothing would protect them, or they would not be sums.

    Args:
        key, got: the setting that asks for them.
        instead: what else it could be.

    Raises:
        ConfigError: naming why.
    """
    strategy = config.strategy
    why = ""
    if config.data.partition.name == "devices":
        why = "devices, whose owners were not asked for sums"
    elif strategy.combine != "mean" or strategy.max_update_norm is not None:
        why = "strategy.combine or max_update_norm, which are for updates alone"
    if why:
        raise ConfigError(key, got, f"{instead} with {why}")
