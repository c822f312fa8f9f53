"""What the settings of a run wish for that a device's policy refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clients.policy.policy import KINDS, Policy
from fedpers.channels.build import channel_name, least_noise, shares_noise
from fedpers.config import Config
from fedpers.errors import ConfigError

MANY = 2**53  # what a value that is no number counts as
ROUNDED = 1e-6  # of a noise multiplier, found twice


def refused_wishes(
    policy: Policy, config: Config, algorithm: str, task: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """A line for each wish that is refused; nothing is imported that is not on the policy's lists.

    Args:
        algorithm: the name of the method's client side.
        task: name and params of the server's task, if it told.
    """
    yield from _names(policy, config, algorithm, task)
    privacy = config.privacy
    if privacy.deterministic_for_tests:
        yield "privacy.deterministic_for_tests: got true, takes false: the server would know it"
    if policy.private:
        yield from _private(policy, config)
    if config.strategy.min_clients < policy.cohort:
        yield _above("strategy.min_clients", config.strategy.min_clients, policy.cohort, "least")
    if config.evaluation.diagnostics and not policy.diagnostics:
        yield "evaluation.diagnostics: got true, takes false"
    if config.rounds > policy.rounds:
        yield _above("rounds", config.rounds, policy.rounds)
    steps: dict[str, float] = {
        "training.epochs": config.training.epochs,
        "privacy.steps": privacy.steps,
    }
    steps["strategy.params"] = largest(config.strategy.params)
    for key, count in steps.items():
        if count > policy.steps:
            yield _above(key, count, policy.steps)
    sizes = {"task.params": largest([config.task.params, (task or {}).get("params", {})])}
    sizes["model.lora.rank"] = config.model.lora.rank if config.model.lora else 0
    for key, size in sizes.items():
        if size > policy.scalars:
            yield _above(key, size, policy.scalars)


def _names(
    policy: Policy, config: Config, algorithm: str, task: Mapping[str, Any] | None
) -> Iterator[str]:
    tasks = {config.task.name} if task is None else {config.task.name, str(task.get("name"))}
    asked = {
        "channel": ([channel_name(config), config.channel], (*policy.channels, "plain")),
        "strategy.name": ([config.strategy.name, algorithm], policy.methods),
        "task.name": (sorted(tasks), policy.tasks),
        "model.name": ([config.model.name], policy.models),
    }
    if config.privacy.enabled:
        asked["privacy.mechanism"] = ([config.privacy.mechanism], policy.mechanisms)
    if channel_name(config) not in policy.channels:
        yield f"channel: got {channel_name(config)!r}, takes {_listed(policy.channels)}"
    for key, (names, allowed) in asked.items():
        for name in dict.fromkeys(names):
            if name not in allowed:
                yield f"{key}: got {name!r}, takes {_listed(allowed)}"


def _private(policy: Policy, config: Config) -> Iterator[str]:
    privacy = config.privacy
    assert policy.epsilon is not None and policy.delta is not None
    if not privacy.enabled:
        yield "privacy.enabled: got false, takes true"
        return
    if privacy.unit != policy.unit:
        yield f"privacy.unit: got {privacy.unit!r}, takes {policy.unit!r}"
    if privacy.epsilon > policy.epsilon:
        yield _above("privacy.epsilon", privacy.epsilon, policy.epsilon)
    if privacy.delta is None:
        yield f"privacy.delta: got null, takes a number of at most {policy.delta:g}"
    elif privacy.delta > policy.delta:
        yield _above("privacy.delta", privacy.delta, policy.delta)
    elif privacy.mechanism in policy.mechanisms:
        sigma = least_noise(config)
        if sigma < (policy.least_noise or 0):
            takes = f"noise of at least {policy.least_noise:g}"
            yield f"privacy: got noise of {sigma:.3g} of the clipping norm, takes {takes}"


def refused_shares(policy: Policy, config: Config, channel: Mapping[str, Any]) -> Iterator[str]:
    """A line for what a server says of the noise that clients are to add, if it is too little.

    Where the settings protect a client as a whole and hide its update, its share of the noise is
    all that protects it: of the least noise to which the settings lead, and as large as it has to
    be when no more clients are in a sum than ``strategy.min_clients``, of which the server cannot
    take any away.

    Args:
        channel: what a message of training says for the channel.
    """
    if not (policy.private and shares_noise(config)):
        return
    noise = channel.get("noise")
    if not isinstance(noise, Mapping) or type(noise.get("honest")) is not int:
        yield "channel.noise: got none, takes the sum's noise and how many add it"
        return
    sigma, least = float(noise["sigma"]), max(policy.least_noise or 0, least_noise(config))
    if not sigma >= (1 - ROUNDED) * least:  # not a number is not enough
        yield f"channel.noise: got {sigma:g} of the clipping norm, takes at least {least:g}"
    if not 1 <= noise["honest"] <= config.strategy.min_clients:
        takes = f"1 to {config.strategy.min_clients}, the fewest clients of a sum"
        yield f"channel.noise: got shares of {noise['honest']} clients, takes {takes}"


def just(config: Config, algorithm: str) -> dict[str, Any]:
    """Rules that allow one run of these settings, as far as they can tell what it needs.

    Raises:
        ConfigError: it is private and names no delta.
    """
    privacy = config.privacy
    if privacy.enabled and privacy.delta is None:
        raise ConfigError("privacy.delta", None, "a number, as a device's policy goes by it")
    own = (privacy.epsilon, privacy.delta, privacy.unit, 0.0)
    names = ("epsilon", "delta", "unit", "least_noise")
    counts = (config.training.epochs, privacy.steps, largest(config.strategy.params))
    return {
        **dict(zip(names, own if privacy.enabled else (None,) * 4, strict=True)),
        "channels": (channel_name(config),),
        "cohort": config.strategy.min_clients,
        "methods": tuple(dict.fromkeys([config.strategy.name, algorithm])),
        "tasks": (config.task.name,),
        "models": (config.model.name,),
        "mechanisms": (privacy.mechanism,),
        "messages": tuple(kind for kind in KINDS if kind != "method" or not privacy.enabled),
        "diagnostics": bool(config.evaluation.diagnostics),
        "rounds": config.rounds,
        "steps": int(max(20, *counts)),  # newcomers are tried after so many batches
    }


def largest(value: Any) -> float:
    """The largest number in JSON-able values; texts count nothing."""
    if isinstance(value, Mapping):
        return max((largest(one) for one in value.values()), default=0)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return max((largest(one) for one in value), default=0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return min(float(value), MANY) if abs(value) < MANY else MANY


def _above(key: str, got: float, bound: float, which: str = "most") -> str:
    return f"{key}: got {got:g}, takes at {which} {bound:g}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
