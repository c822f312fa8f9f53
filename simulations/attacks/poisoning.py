"""Malicious clients: ``fedpers attack``. What they do to models of clients that are honest.

The clients' and the server's real code in this process, round by round without messages. A share of
the clients is malicious and knows one of three attacks:

- label-flip: its training labels y become C - 1 - y;
- sign-flip: it sends received - 3 (trained - received);
- backdoor: half of its training examples get a trigger and the attacker's label (Gu et al. 2017,
  BadNets, arXiv 1708.06733), and its change may be boosted (Bagdasaryan et al. 2020, model
  replacement, arXiv 1807.00459).

Attackers know ``strategy.max_update_norm`` and stay within it. Scored are honest clients only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from clients.node.host import ClientHost
from fedpers.channels.base import Turn
from fedpers.channels.build import hides_updates
from fedpers.config import Config, load_config
from fedpers.data import Examples, FederatedData
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import ClientResult, metrics
from fedpers.models import build_model
from fedpers.parts import Parts
from fedpers.records import in_the_clear
from fedpers.robust import clipped
from fedpers.seeding import seed_for, torch_generator
from fedpers.tasks import Classification
from simulations.attacks.audited import Replaced, audited, start_over
from simulations.backends.checks import absolute_paths, check
from simulations.experiments.compare import Cell, cells
from strategies.base import PersonalizedStrategy, find_strategy

NONE, KINDS = "none", ("label-flip", "sign-flip", "backdoor")
MODES = ("personal", "global")
SIGN_FLIP = -3.0  # times its change


@dataclass(frozen=True)
class Attack:
    """What malicious clients do.

    Args:
        kind: one of ``KINDS``, or ``none``: they are honest, which is what an attack is held
            against; scored are the same clients.
        share: of the clients that are malicious, in (0, 1): at least one, and never all.
        target: the label of the backdoor, 0..C-1.
        boost: by which a backdoor's change is multiplied, > 0.

    Raises:
        ConfigError: an unknown kind, or a share or boost out of range.
    """

    kind: str
    share: float = 0.2
    target: int = 0
    boost: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in (NONE, *KINDS):
            raise ConfigError("--attack", self.kind, f"one of {', '.join(KINDS)}")
        if not 0 < self.share < 1:
            raise ConfigError("--share", self.share, "a number > 0 and < 1")
        if not self.boost > 0:
            raise ConfigError("--boost", self.boost, "a number > 0")

    def malicious(self, clients: Sequence[str], seed: int) -> list[str]:
        """Who is malicious: the same clients for every method and attack with one seed."""
        count = min(max(1, round(self.share * len(clients))), len(clients) - 1)
        return sorted(random.Random(seed_for(seed, "malicious")).sample(list(clients), count))

    def poisoned(self, train: Examples, data: FederatedData, seed: int, client: str) -> Examples:
        """A malicious client's training examples."""
        if self.kind == "label-flip":
            return Examples(train.x, data.task.outputs - 1 - train.y)
        if self.kind == "backdoor":
            order = torch_generator(seed, "backdoor", client)
            chosen = torch.randperm(len(train), generator=order)[: len(train) // 2]
            x, y = train.x.clone(), train.y.clone()
            x[chosen] = triggered(x[chosen], data)
            y[chosen] = self.target
            return Examples(x, y)
        return train

    def sent(self, received: Parts, trained: Parts, most: float | None) -> Parts:
        """What a malicious client sends: its change times a factor, within the norm ``most``."""
        factor = {"sign-flip": SIGN_FLIP, "backdoor": self.boost}.get(self.kind, 1.0)
        changed = Parts(
            {
                name: part.like(
                    received[name].vector + factor * (part.vector - received[name].vector)
                )
                for name, part in trained.items()
            }
        )
        return changed if most is None else clipped(changed, received, most)


def triggered(x: Tensor, data: FederatedData) -> Tensor:
    """Inputs [n, ...] with the trigger: the greatest value that inputs have, in the lower right
    corner of an image (a quarter of its height and width), else in the first 1/16 of the features.
    """
    x, high = x.clone(), float(data.inputs.max())
    if data.signature.kind == "image":
        height, width = (max(1, side // 4) for side in x.shape[-2:])
        x[..., -height:, -width:] = high
    else:
        flat = x.view(len(x), -1)
        flat[:, : max(1, flat.shape[1] // 16)] = high
    return x


@dataclass(frozen=True)
class Outcome:
    """Of one run, by mode (personal, global; absent where a method has no such model).

    Attributes:
        accuracy: the mean over honest clients of the accuracy on their test examples.
        success: of their test examples that are not of the target class, with the trigger on, the
            share that is predicted as the target. Without a backdoor: how often that happens by
            itself.
    """

    accuracy: Mapping[str, float]
    success: Mapping[str, float]


def run_attack(config: Config, attack: Attack) -> Outcome:
    """A whole run in which some clients are malicious.

    Raises:
        ConfigError: settings that the scenario does not know, or a target that is no class.
        RunError: no update can be used in some round.
    """
    config = replace(config, evaluation=replace(config.evaluation, outside=0))
    with audited(config) as host:
        data = host.data
        _check(config, attack, data)
        strategy = find_strategy(config)(config, build_model(config, data), data)
        malicious = attack.malicious(data.clients, config.seed)
        honest = [client for client in data.clients if client not in malicious]
        train = {client: data.client(client).train for client in data.clients}
        for client in malicious:
            train[client] = attack.poisoned(train[client], data, config.seed, client)
        start_over(host, Replaced(data, train))
        for server_round in range(1, config.rounds + 1):
            _round(host, strategy, server_round, attack, malicious)

        clean = _score(host, strategy, honest)
        tests = {}
        for client in honest:
            own = data.client(client).test
            others = own.take((own.y != attack.target).nonzero().view(-1))
            target = torch.full_like(others.y, attack.target)
            tests[client] = Examples(triggered(others.x, data), target)
        # Other test examples under the stores and models that are there.
        host.work_on(Replaced(data, train, tests))
        hit = _score(host, strategy, honest)
    accuracy, success = {}, {}
    metric = Classification.metrics["accuracy"]
    for mode in (m for m in MODES if m in clean[0].test.modes):
        accuracy[mode] = metrics.mean(clean, metric, mode) or 0.0
        success[mode] = metrics.pooled(hit, metric, mode) or 0.0
    return Outcome(accuracy, success)


def _check(config: Config, attack: Attack, data: FederatedData) -> None:
    if config.privacy.by_client:
        raise ConfigError("privacy.unit", "client", "example, or privacy.enabled=false, here")
    if hides_updates(config):
        raise ConfigError("encryption.enabled", True, "false here, where the server reads updates")
    if data.signature.kind == "text":
        raise ConfigError("data.name", config.data.name, "images, signals or tables here, not text")
    if not isinstance(data.task, Classification):
        raise ConfigError("task.name", config.task.name, "classification here: labels are attacked")
    if not 0 <= attack.target < data.task.outputs:
        raise ConfigError("--target", attack.target, f"a class, 0 to {data.task.outputs - 1}")


def _round(
    host: ClientHost,
    strategy: PersonalizedStrategy,
    server_round: int,
    attack: Attack,
    malicious: Sequence[str],
) -> None:
    """Everybody trains; what malicious clients send is their own; the server combines."""
    updates, reports, reasons = {}, {}, []
    for client in strategy.select(server_round, host.data.clients):
        received = in_the_clear(strategy.broadcast(server_round, client))
        upload, report = host.train(client, server_round, received)
        if client in malicious:
            upload = attack.sent(received, upload, host.config.strategy.max_update_norm)
        if (reason := strategy.channel.accept(client, received, upload)) is None:
            updates[client], reports[client] = upload, report
        else:
            reasons.append(f"client {client}: {reason}")
    if not updates:
        raise RunError(f"round {server_round}: no client is left; {reasons[0]}")
    if strategy.shares:
        mixing, turn = (
            strategy.mixing(server_round, reports),
            Turn(server_round, [], strategy.parts),
        )
        strategy.put(mixing, strategy.channel.mix(turn, mixing, updates).rows)
    strategy.updates, strategy.reported = updates, reports
    strategy.refine(server_round)


def _score(
    host: ClientHost, strategy: PersonalizedStrategy, clients: Sequence[str]
) -> list[ClientResult]:
    last = host.config.rounds
    received = {c: in_the_clear(strategy.broadcast_to_evaluate(last, c)) for c in clients}
    common = strategy.common(received)
    return [host.evaluate(c, last, parts, common=common) for c, parts in received.items()]


# -- several methods, attacks and seeds ------------------------------------------------------


def run_attacks(
    config: Path, overrides: Sequence[str], plan: Sequence[Cell], attacks: Sequence[Attack]
) -> Iterator[tuple[Cell, str, Outcome]]:
    """Each cell without an attack and under each; yields cell, kind and outcome.

    Raises:
        FedpersError: a mistake in the settings of any run, before the first one starts.
    """
    settings = {}
    for cell in plan:
        settings[cell] = absolute_paths(load_config(config, [*overrides, *cell.overrides]))
        if cell.seed == plan[0].seed:
            check(settings[cell])
    for cell in plan:
        for attack in [replace(attacks[0], kind=NONE), *attacks]:
            yield cell, attack.kind, run_attack(settings[cell], attack)


def plan_of(strategies: str, combine: str, seeds: int) -> list[Cell]:
    """Every method under every combination and seed; names are separated by commas."""
    return cells(strategies.split(","), seeds, [f"strategy.combine={combine}"])


def table(outcomes: Mapping[tuple[Cell, str], Outcome]) -> str:
    """A Markdown table: a row a method, combination and attack; in %, mean +- standard deviation
    over seeds. *Lost*: the accuracy without the attack less that with it, in points."""
    names = ["method", "combine", "attack"]
    names += [name for mode in MODES for name in (mode, "lost", f"success, {mode}")]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    rows: dict[tuple[str, str, str], list[tuple[Outcome, Outcome]]] = {}
    for (cell, kind), outcome in outcomes.items():
        row = (cell.method, cell.setting.removeprefix("strategy.combine="), kind)
        rows.setdefault(row, []).append((outcome, outcomes[cell, NONE]))
    for (method, combine, kind), pairs in rows.items():
        shown = [method, combine, kind]
        for mode in MODES:
            there = [(found, base) for found, base in pairs if mode in found.accuracy]
            lost = [base.accuracy[mode] - found.accuracy[mode] for found, base in there]
            success = [found.success[mode] for found, _ in there]
            shown += [
                _spread([found.accuracy[mode] for found, _ in there]),
                _spread([] if kind == NONE else lost),
                _spread(success if kind in (NONE, "backdoor") else []),
            ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    if not percent:
        return "-"
    return f"{mean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")
