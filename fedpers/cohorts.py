"""How many clients a round asks; and cohorts that cannot be, refused before the run."""

from __future__ import annotations

from math import ceil

from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.robust import left_out


def cohort_of(config: Config, clients: int) -> int:
    """How many of ``clients`` are asked in a round: ``strategy.fraction``, or ``min_clients``."""
    share = ceil(config.strategy.fraction * clients - 1e-9)  # 0.07 * 100 is 7.00...01
    return min(max(config.strategy.min_clients, share), clients)


def check_cohort(config: Config, clients: int) -> None:
    """Refuse more ``min_clients`` than there can be, and a robust rule against nobody.

    Args:
        clients: that a simulation has; 0 where they are devices, of which ``min_clients`` take part
            in each round or more.

    Raises:
        ConfigError: naming the setting.
    """
    settings, least = config.strategy, config.strategy.min_clients
    if clients and least > clients:
        takes = f"an integer <= {clients}, the clients of this simulation"
        raise ConfigError("strategy.min_clients", least, takes, "they would be waited for in vain")
    cohort = cohort_of(config, clients or least)
    if settings.combine in ("trimmed", "krum") and left_out(settings.trim, cohort) < 1:
        takes = f"{1 / cohort:.3g} or more, as it leaves out nobody of {cohort} clients"
        cure = "raise it, strategy.fraction or strategy.min_clients, or set strategy.combine=mean"
        raise ConfigError("strategy.trim", settings.trim, takes, cure)
