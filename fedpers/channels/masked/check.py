"""What masked sums refuse before a run, and the policy that the settings ask for."""

from __future__ import annotations

from fedpers.channels.base import Needs
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.noise import least_answers
from fedpers.cohorts import cohort_of
from fedpers.config import Config
from fedpers.errors import ConfigError

SEALED = "set encryption.scheme=auto, whose server mixes what it cannot read"


def policy_of(config: Config) -> Policy:
    """What the clients stand on.

    Raises:
        ConfigError: a share of corrupt clients beside one of dropouts that nobody can stand.
    """
    masks = config.encryption.masks
    return Policy(masks.minimum, masks.corrupt, masks.dropouts, masks.attempts)


def check_method(config: Config, needs: Needs, weighted: str) -> None:
    """Refuse a method whose server needs more than sums, and what sums cannot have.

    Raises:
        ConfigError: naming the setting and the cure.
    """
    policy_of(config)
    name, rule = config.strategy.name, config.strategy.combine
    if rule != "mean":
        takes = "mean with masked sums: a server that sees no single update cannot sort them"
        cure = "set strategy.combine=mean or encryption.enabled=false"
        raise ConfigError("strategy.combine", rule, takes, cure)
    takes = "with masked sums a method whose server needs sums alone"
    if needs.single_updates is not None or needs.banks:
        reads = needs.single_updates or "which of several models each client trained"
        cure = needs.instead or "set encryption.enabled=false"
        raise ConfigError("strategy.name", name, f"{takes}; this one reads {reads}", cure)
    if needs.compares is not None:
        reads = f"{takes}; this one compares every client's {needs.compares}"
        raise ConfigError("strategy.name", name, reads, SEALED)
    if needs.rows or weighted == "own":
        has = "mixtures for single clients" if needs.rows else "weights of its own"
        raise ConfigError("strategy.name", name, f"{takes}; this one has {has}", SEALED)
    if config.encryption.rotate_at is not None:
        takes = "null with masked sums, which have no common key"
        raise ConfigError(
            "encryption.rotate_at", config.encryption.rotate_at, takes, "leave it out"
        )


def check_cohorts(config: Config, clients: int) -> None:
    """Refuse cohorts below the minimum that clients stand on, and keys where a run makes them.

    Args:
        clients: of a simulation.

    Raises:
        ConfigError: naming the setting and the cure.
    """
    if (keys := config.encryption.keys) is not None:
        takes = "null with masked sums in a simulation, whose clients make keys of their own"
        cure = "leave it out, or set encryption.scheme=bfv for a key of fedpers keys new"
        raise ConfigError("encryption.keys", keys, takes, cure)
    least = config.encryption.masks.minimum
    cohort = cohort_of(config, clients)
    if cohort < least:
        takes = f"cohorts of {least} clients or more, and here are {clients}, of which {cohort} are"
        cure = "raise strategy.min_clients or strategy.fraction, or set encryption.scheme=bfv"
        raise ConfigError("encryption.masks.minimum", least, f"{takes} asked", cure)
    quorum = policy_of(config).quorum(cohort)
    if quorum > cohort:
        takes = f"a share of which a cohort of {cohort} has a quorum, and it takes {quorum}"
        cure = "lower it, or ask more clients"
        raise ConfigError("encryption.masks.corrupt", config.encryption.masks.corrupt, takes, cure)
    if config.privacy.by_client:
        answers = least_answers(config, policy_of(config), cohort)
        if answers > cohort:
            takes = f"a share that leaves room for encryption.masks.corrupt, and {answers} of a"
            takes = f"{takes} cohort of {cohort} would have to answer"
            raise ConfigError("encryption.honest", config.encryption.honest, takes, "lower either")
