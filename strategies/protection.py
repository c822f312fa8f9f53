"""Where combinations other than the mean, methods that read updates under encryption, and cohorts
that cannot be are refused: before the run, each in one line."""

from __future__ import annotations

from math import ceil

from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.robust import left_out


def check_combine(config: Config, reads: str | None, own_mixing: bool) -> None:
    """Refuse a robust ``strategy.combine`` where it cannot be used, or would protect nobody.

    Args:
        reads: what the method's server reads of single clients' updates, None for nothing: it
            would take that from liars too.
        own_mixing: the method has weights or rows of its own, which robust rules do not use.

    Raises:
        ConfigError: naming the reason and the cure.
    """
    rule, cure = config.strategy.combine, "set strategy.combine=mean"
    if rule == "mean":
        return
    if config.encryption.enabled:
        takes = "mean with encryption: a server that cannot read updates cannot sort them"
        raise ConfigError("strategy.combine", rule, takes, f"{cure} or encryption.enabled=false")
    if config.privacy.enabled and config.privacy.unit == "client":
        takes = "mean with privacy.unit=client, whose noise covers a sum of clipped updates only"
        raise ConfigError("strategy.combine", rule, takes, f"{cure} or privacy.unit=example")
    if reads is not None:
        takes = f"mean for a method whose server reads {reads}"
        raise ConfigError("strategy.combine", rule, takes, f"or {cure}")
    if own_mixing:
        takes = "mean for a method with a mixing of its own"
        raise ConfigError("strategy.combine", rule, takes, cure)


def check_encryption(config: Config, reads: str | None, encrypted_form: bool) -> None:
    """Refuse a method that the server could not run on ciphertexts.

    Raises:
        ConfigError: naming what it reads.
    """
    if reads is not None and not encrypted_form:
        takes = f"a method whose server only mixes; this one reads {reads}"
        raise ConfigError("strategy.name", config.strategy.name, takes)


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
