"""Before a run starts: everything that can be known to be wrong is one line now, not later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from clients.admission import check_private
from clients.base import LocalAlgorithm, find_algorithm
from clients.training.account import check_client
from fedpers.channels.build import check_clients
from fedpers.cohorts import check_cohort
from fedpers.config import Config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.paths import paths_of
from fedpers.stats import Stat
from simulations.backends.flower import joins_cluster
from strategies.base import PersonalizedStrategy, find_strategy


def absolute_paths(config: Config) -> Config:
    """``config``, its paths resolved against the working folder; it is changed in place.

    The parts of a run do not work in the folder in which the user started it.
    """
    for node, name in paths_of(config):
        value = getattr(node, name)
        # A data file that is not here is looked for in FEDPERS_DATA, under the name given.
        if value and (name != "path" or Path(value).expanduser().exists()):
            setattr(node, name, str(Path(value).expanduser().resolve()))
    kind, _, folder = config.model.name.partition(":")
    if kind in ("hf", "sentence") and Path(folder).expanduser().is_dir():
        config.model.name = f"{kind}:{Path(folder).expanduser().resolve()}"
    return config


def check(config: Config) -> None:
    """Load the data, find the method, and check that they fit.

    Raises:
        FedpersError: a mistake that the user can mend.
    """
    strategy = find_strategy(config)
    name = strategy.client_side()
    algorithm, params = find_algorithm(name, config, strategy.param_names())
    check_told(config, algorithm, strategy)
    data = load_data(config)
    needs = strategy.needs(strategy.check(config, data))
    check_cohort(config, len(data.clients))
    if strategy.shares:
        check_clients(config, needs, len(data.clients))
    if config.privacy.by_example:
        for client in data.clients:
            check_client(config, client, data.size(client))
        check_private(name, algorithm(config, build_model(config, data), params))


def check_told(
    config: Config, client: type[LocalAlgorithm], server: type[PersonalizedStrategy]
) -> None:
    """Check that the sides of a method declare the same numbers, reported and polled: a server
    that expects others would leave every client out.

    Raises:
        ConfigError: they do not.
    """
    for name in ("reports", "polls"):
        told, read = getattr(client, name), getattr(server, name)
        if told != read:
            takes = (
                f"a method whose {name} are the same on both sides: its clients' are {_shown(told)}"
                f", its server's {_shown(read)}"
            )
            raise ConfigError("strategy.name", config.strategy.name, takes)


def _shown(stats: Sequence[Stat]) -> str:
    return ", ".join(f"{stat.name} in {stat.low:g}..{stat.high:g}" for stat in stats) or "none"


def check_serial(config: Config) -> None:
    """Check that nothing is asked for that one process does not give.

    Raises:
        ConfigError: a share of a GPU.
    """
    if config.simulation.gpus_per_node:
        takes, cure = "0 with --backend serial", "leave --backend out to train on a GPU"
        raise ConfigError("simulation.gpus_per_node", config.simulation.gpus_per_node, takes, cure)


def check_ray(config: Config) -> None:
    """Check that a node can use what it is given, and that this machine has it.

    Raises:
        ConfigError: it cannot, or this machine has not. In a cluster of others another may.
    """
    if config.simulation.gpus_per_node > 1:
        takes, cure = "a number <= 1: a node computes on one GPU", "raise simulation.nodes instead"
        raise ConfigError("simulation.gpus_per_node", config.simulation.gpus_per_node, takes, cure)
    if joins_cluster():
        return
    simulation, cores = config.simulation, os.cpu_count() or 1
    if simulation.cpus_per_node > cores:
        takes = f"an integer <= {cores}, the cores of this machine"
        raise ConfigError("simulation.cpus_per_node", simulation.cpus_per_node, takes)
    if simulation.gpus_per_node > 0 and not torch.cuda.is_available():
        takes = "0: no GPU is in sight on this machine"
        raise ConfigError("simulation.gpus_per_node", simulation.gpus_per_node, takes)
