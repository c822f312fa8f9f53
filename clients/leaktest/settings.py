"""What is rehearsed: under which settings, and whose code."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from typing import Any

from clients.base import algorithms
from fedpers.channels.build import send_plainly
from fedpers.channels.named import channel_named
from fedpers.config import Config, Pretrain
from fedpers.models.backbones import BACKBONES
from fedpers.privacy import mechanism_named
from fedpers.tasks import task_named

FEW = 4  # clients that train in a group, and examples of others that a model is tried on
BATCH = 3
EPSILON = 1e4  # so large that training is to be seen through the noise
DELTA = 1e-5
OURS = ("fedpers", "clients", "strategies", "simulations")


def settings(config: Config, *, own: bool) -> dict[str, Any]:
    """The settings that a method is tried with.

    Args:
        own: the method and the backbone are ours: they do not hang on settings of the run that only
            say how long, how far and on which data.
    """
    found = rehearsed(config)
    found.training.fold = "off" if config.training.fold == "off" else "auto"
    found.output = Config().output
    if own:
        plain = Config()
        found.seed, found.rounds, found.round_timeout = (
            plain.seed,
            plain.rounds,
            plain.round_timeout,
        )
        found.data, found.evaluation = plain.data, rehearsed(plain).evaluation
        found.simulation, found.strategy.combine = plain.simulation, plain.strategy.combine
        found.training.lr, found.training.epochs = plain.training.lr, 1
        found.privacy.delta = None if config.privacy.delta is None else DELTA
        found.privacy.lr, found.privacy.max_grad_norm = None, plain.privacy.max_grad_norm
    return asdict(found)


def rehearsed(config: Config, *, folded: bool = False) -> Config:
    """The settings of a rehearsal: the run's, with few steps on few examples on the CPU, and noise
    through which training is to be seen."""
    own = deepcopy(config)
    privacy, training = own.privacy, own.training
    privacy.steps = min(privacy.steps, 2)
    privacy.sampling_rate = 1.0 if privacy.sampling_rate == 1 else 0.5
    privacy.epsilon, privacy.deterministic_for_tests = EPSILON, False
    training.fold, training.batch_size = str(FEW) if folded else "off", BATCH
    own.model.pretrain = Pretrain()
    own.strategy.fraction, own.strategy.min_clients = 1.0, 1
    send_plainly(own)
    own.evaluation.diagnostics, own.evaluation.adapters = False, False
    own.evaluation.outside = min(own.evaluation.outside, FEW)
    own.simulation.cpus_per_node, own.simulation.gpus_per_node = 1, 0.0
    own.data.holdout_clients, own.state = 0, None
    return own


def packages_of(config: Config, algorithm: str) -> list[str]:
    """The top-level packages of code from outside: the method's, the backbone's, the task's, the
    mechanism's and the channel's."""
    homes = [kind.__module__ for kind in algorithms.get(algorithm).__mro__]
    homes += [kind.__module__ for kind in task_named(config.task)[0].__mro__]
    homes += [kind.__module__ for kind in mechanism_named(config.privacy.mechanism).__mro__]
    homes += [kind.__module__ for kind in channel_named(config.channel).__mro__]
    name = config.model.name
    if not name.startswith(("hf:", "sentence:")):
        homes += [kind.__module__ for kind in BACKBONES.get(name).__mro__]
    found = dict.fromkeys(home.partition(".")[0] for home in homes)
    return [name for name in found if name not in (*OURS, "torch", "builtins", "abc", "typing")]
