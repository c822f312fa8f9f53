"""Whether a device can take part in a run, found out on the device, offline."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from urllib.parse import quote

from clients.admission import check_private
from clients.base import find_algorithm
from clients.node.device import Device
from clients.policy.enforcement import runs_taken
from clients.policy.policy import Policy, read_policy
from clients.policy.wishes import refused_wishes
from clients.training.account import check_client
from fedpers.channels.build import describe
from fedpers.config import Config
from fedpers.data import device_data
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.permit import Permit, read_permit
from fedpers.privacy import Ledger
from fedpers.privacy.accounting import default_delta
from fedpers.privacy.ledger import LEFT
from strategies.base import find_strategy

log = logging.getLogger("fedpers")

AS = {"example": "", "client": ", but for what only the server has counted"}


def check_device(
    config: Config,
    client: str,
    data: Path,
    state: Path | None,
    keys: Path | None,
    policy: Path | None = None,
) -> Iterator[str]:
    """What was found, a line each.

    Args:
        config: the run's settings.
        client: the device's client id.
        data: its file.
        state: its folder, if it has one already.
        keys: the folder with ``client.key``.
        policy: the file of its policy; None to look at all the rest. What it refuses is told first,
            a line each, and what the run would cost.

    Raises:
        FedpersError: the device cannot take part; the line says why.
    """
    if policy is not None:
        yield from _policy(config, client, policy, state)
    if config.data.columns.classes is None:
        takes = "how many classes there are, for a device need not have them all"
        raise ConfigError("data.columns.classes", None, takes)
    if state is not None and state.is_dir():
        Device(client, data, state).claimed()
    found = device_data(config, client, data)
    own, reads = found.client(client), found.signature
    sizes = f"{len(own.train)} for training, {len(own.val)} for validation, {len(own.test)} to test"
    yield f"data: {sizes}; {reads.kind} {reads.shape}, {found.task.described}"
    # What comes from the server, of public data, is left at its start.
    bare = replace(config.model, pretrain=replace(config.model.pretrain, task="none"))
    bare = replace(bare, standardise=False)
    strategy = find_strategy(config)
    name = strategy.client_side()
    algorithm, params = find_algorithm(name, config, strategy.param_names())
    bound = algorithm(config, build_model(replace(config, model=bare), found), params)
    sent = sum(layout.size for layout in bound.declared.layouts.values())
    yield f"model: {config.model.name} for {name}, {sent:,} scalars are sent in a round"
    yield from _privacy(config, name, bound, client, len(own.train), state)
    if said := describe(config, keys):
        yield said
    if state is not None:
        try:
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = state / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            takes = f"a folder that can be written ({error.strerror})"
            raise ConfigError("state", str(state), takes) from None
        yield f"state: {state} can be written"


def _policy(config: Config, client: str, path: Path, state: Path | None) -> Iterator[str]:
    policy, strategy = read_policy(path), find_strategy(config)
    permit = read_permit(Path(config.permit)) if config.permit else None
    asked = (config, strategy.client_side(), strategy.param_names())
    refused = list(refused_wishes(policy, config, strategy.client_side()))
    refused += [] if permit is None else _permit(permit, policy, *asked)
    runs = runs_taken(state) if state is not None else set()
    goes_on = permit is not None and _run_of(permit) in runs
    number = len(runs) + (not goes_on)
    if number > policy.runs:
        refused.append(f"runs: got {number}, takes at most {policy.runs}")
    yield from (f"policy refuses: {line}" for line in refused)
    if policy.private:
        yield f"cost: {_cost(config, policy, client, state)}"
    days = ceil(config.rounds / policy.rounds_a_day)
    first, last = policy.hours
    hours = "at any hour" if (first, last) == (0, 24) else f"from {first} to {last} o'clock UTC"
    span = f"{config.rounds} rounds in {days} day{'s' * (days > 1)} or more"
    yield f"time: run {number} of {policy.runs}; {span}, {hours}"
    if refused:
        takes = f"settings that it allows ({len(refused)} refused, as above)"
        raise ConfigError("policy", str(path), takes)
    yield f"policy: {path} allows this run, signed by {' or '.join(policy.operators)}"


def _permit(
    permit: Permit, policy: Policy, config: Config, algorithm: str, server_params: Sequence[str]
) -> Iterator[str]:
    """What is wrong with the permit that the settings name."""
    try:
        said, allows = permit.said(), permit.allows(config, algorithm, server_params)
    except ValueError as error:
        yield str(error)
        return
    if permit.operator not in policy.operators:
        yield f"operators: got {permit.operator!r}, takes one of the policy"
    if not allows:
        yield "permit: got other settings than it was signed for"
    if said["expires"] <= time.time():
        yield "permit: it expired"


def _run_of(permit: Permit) -> str | None:
    try:
        return str(permit.said()["run"])
    except ValueError:
        return None


def _cost(config: Config, policy: Policy, client: str, state: Path | None) -> str:
    """What a run takes of what may ever be spent."""
    privacy = config.privacy
    assert policy.epsilon is not None and policy.delta is not None
    if not privacy.enabled:
        return f"nobody counts it, as privacy is off; {policy.epsilon:g} may be spent for ever"
    delta, spent = privacy.delta or policy.delta, 0.0
    if state is not None:
        spent = Ledger.named(state / "ledgers", quote(client, safe="")).epsilon(delta)
    more, left = max(0.0, privacy.epsilon - spent), max(0.0, policy.epsilon - privacy.epsilon)
    return (
        f"epsilon {spent:.2f} of {policy.epsilon:g} is spent at delta {delta:g}{AS[privacy.unit]}; "
        f"this run takes up to {more:.2f} more, and {left:.2f} is left after it"
    )


def _privacy(
    config: Config, name: str, bound: object, client: str, examples: int, state: Path | None
) -> Iterator[str]:
    from clients.base import LocalAlgorithm

    privacy = config.privacy
    if not privacy.enabled:
        yield "privacy: off"
        return
    if privacy.by_client:
        yield f"privacy: epsilon {privacy.epsilon:g} for each client, added up by the server"
        return
    assert isinstance(bound, LocalAlgorithm)
    check_client(config, client, examples)
    check_private(name, bound)
    delta, spent = privacy.delta or default_delta(examples), 0.0
    if state is not None:
        spent = Ledger.named(state / "ledgers", quote(client, safe="")).epsilon(delta)
    if spent > (1 - LEFT) * privacy.epsilon:
        takes = f"more than the {spent:.3g} that earlier runs have spent"
        raise ConfigError("privacy.epsilon", privacy.epsilon, takes)
    yield f"privacy: {spent:.2f} of epsilon {privacy.epsilon:g} at delta {delta:g} are spent"
