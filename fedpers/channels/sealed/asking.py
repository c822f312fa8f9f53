"""What the server has nodes do with the key: each thing by two of them, who have to agree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from fedpers.channels.identity.registry import Registry, verified
from fedpers.channels.sealed.openings import Mean, quorum
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.channels.wire import Question, Wire
from fedpers.errors import ClientError
from fedpers.parts import Parts
from fedpers.records import in_the_clear

log = logging.getLogger("fedpers")

T = TypeVar("T")


def asked_twice(
    nodes: Sequence[int],
    ask: Callable[[Sequence[int]], Mapping[int, T]],
    same: Callable[[T, T], bool],
) -> T | None:
    """What two nodes say alike; of an only node that answers, what it says. None if no two do.

    Args:
        nodes: to ask, the first two at once, others where those disagree or are silent.
        ask: nodes for their answers, of those that give one.
        same: whether two answers are alike.
    """
    told: dict[int, T] = {}
    rest = list(nodes)
    while rest:
        asked, rest = rest[: max(1, 2 - len(told))], rest[max(1, 2 - len(told)) :]
        told |= ask(asked)
        for one, other in combinations(told, 2):
            if same(told[one], told[other]):
                for node in told:
                    if not same(told[node], told[one]):
                        log.warning("node %s opens something else than two others do", node)
                return told[one]
    return next(iter(told.values())) if len(told) == 1 else None


class Asking:
    """The server's questions about sums of one round.

    Args:
        wire: to the nodes.
        run: its name.
        registry: the clients' identities.
        server_round: its number.
        grid: by how much two nodes' roundings of one mean may differ.
    """

    def __init__(
        self, wire: Wire, run: str, registry: Registry, server_round: int, grid: float
    ) -> None:
        self.wire, self.run, self.registry = wire, run, registry
        self.round, self.grid = server_round, grid

    def opens(self, rows: Sequence[SealedParts]) -> list[bool] | None:
        """Whether each is as sums of honest clients' updates are; None if nobody tells."""

        def ask(nodes: Sequence[int]) -> dict[int, list[bool]]:
            hosts = {node: self._hosted(node)[:1] for node in nodes}
            body = {"round": self.round}
            came = self.wire.ask("check", {n: Question(c, rows, body) for n, c in hosts.items()})
            found = {node: told.get("opens") for node, told in came.bodies.items()}
            return {node: opens for node, opens in found.items() if _yes_or_no(opens, len(rows))}

        nodes = [node for node in self.wire.nodes if self._hosted(node)]
        turn = self.round % max(1, len(nodes))  # not the same two in every round
        return asked_twice(nodes[turn:] + nodes[:turn], ask, lambda one, other: one == other)

    def open(self, row: SealedParts) -> Parts | None:
        """A mean in the clear, that two thirds of its clients agree to have opened; None where it
        is not."""
        mean = Mean.of(row, self.round)
        clients, agreed = mean.clients, self._agreed(mean)
        if len(agreed) < quorum(len(clients)):
            told = self.round, len(agreed), len(clients)
            log.warning("round %d: %d of %d clients agree to have their mean opened", *told)
            return None
        hosts = self.wire.by_node(clients)
        body = {"round": self.round, "agreed": agreed}

        def ask(nodes: Sequence[int]) -> dict[int, Parts]:
            found = {}
            questions = {node: Question(hosts[node][:1], [row], body) for node in nodes}
            came = self.wire.ask("open", questions)
            for reason in came.failures.values():
                log.warning("round %d: a mean is not opened: %s", self.round, reason)
            for node in nodes:
                opened = came.rows.get(hosts[node][0])
                try:
                    parts = in_the_clear(opened) if opened is not None else None
                except ClientError:
                    continue
                if parts is not None and _fits(parts, row):
                    found[node] = parts
            return found

        return asked_twice(list(hosts), ask, self._alike)

    def _agreed(self, mean: Mean) -> dict[str, str]:
        body = {"round": mean.round, "mean": mean._asdict()}
        hosts = self.wire.by_node(mean.clients)
        came = self.wire.ask("agree", {n: Question(c, [], body) for n, c in hosts.items()})
        said, agreed = mean.agreement(self.run), {}
        for node, told in came.bodies.items():
            given = told.get("agreed")
            for client in hosts[node]:
                signed = given.get(client) if isinstance(given, Mapping) else None
                if _signs(signed, self.registry[client].verifying, said):
                    agreed[client] = str(signed)
        return agreed

    def _alike(self, one: Parts, other: Parts) -> bool:
        slack = 1.01 * self.grid
        return all(float((one[n].vector - other[n].vector).abs().max()) <= slack for n in one)

    def similar(self, units: Mapping[str, SealedParts]) -> dict[str, Tensor]:
        """For each client its weights [K] of all K clients in ``units``, which sum to 1; none if no
        two nodes agree on them.

        Args:
            units: of each client, its unit vector.
        """
        clients, rows = list(units), list(units.values())
        hosts = self.wire.by_node(clients)

        def ask(nodes: Sequence[int]) -> dict[int, dict[str, list[float]]]:
            questions = {}
            for node in nodes:
                body = {"round": self.round, "opener": hosts[node][0]}
                questions[node] = Question(clients, rows, body)
            came = self.wire.ask("similarity", questions)
            found = {}
            for node, told in came.bodies.items():
                given = told.get("rows")
                given = given if isinstance(given, Mapping) else {}
                if all(weighs(given.get(client), len(clients)) for client in clients):
                    found[node] = {client: given[client] for client in clients}
            return found

        found = asked_twice(list(hosts), ask, lambda one, other: one == other) or {}
        weights = {client: torch.tensor(row, dtype=torch.float32) for client, row in found.items()}
        return {client: row / row.sum() for client, row in weights.items()}

    def _hosted(self, node: int) -> list[str]:
        return self.wire.by_node(list(self.registry.publics)).get(node, [])


def weighs(row: Any, size: int) -> TypeGuard[list[float]]:
    """Whether a node's answer is a row of weights within 0..1, of which one or more count."""
    if not isinstance(row, list) or len(row) != size:
        return False
    return all(type(w) in (int, float) and 0 <= w <= 1 for w in row) and sum(row) > 0


def _yes_or_no(told: Any, size: int) -> TypeGuard[list[bool]]:
    return isinstance(told, list) and len(told) == size and all(type(x) is bool for x in told)


def _fits(parts: Parts, row: SealedParts) -> bool:
    return dict(parts.layouts) == dict(row.layouts) and not parts.first_not_finite()


def _signs(signed: Any, verifying: bytes, said: bytes) -> bool:
    try:
        return verified(verifying, bytes.fromhex(signed), said)
    except (TypeError, ValueError):
        return False
