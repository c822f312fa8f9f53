"""What a node answers to each kind of message, without Flower: parts and a body in, parts and a
body out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, TypeVar

from clients.node import pooling, telling
from clients.node.dealing import deal
from clients.node.door import Answered, Body, Rows, leave
from clients.node.exporting import export as export_model
from clients.node.failures import withheld
from clients.node.host import ClientHost
from clients.node.keeper import Keeper
from fedpers.channels.node import Leaving
from fedpers.context import NOTHING
from fedpers.errors import ClientError
from fedpers.failures import KEY
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent
from fedpers.records import Row

Node = TypeVar("Node", bound=Keeper)


def answer(kind: str, host: Keeper, rows: Rows, body: Body) -> Answered:
    """What a node answers to a message: parts and a JSON-able body.

    Args:
        kind: one of ``ANSWERS``.
        host: the node's clients; of ``channel`` its keeper will do.
        rows: the parts that came, as they came.
        body: what came with them.
    """
    answered = ANSWERS[kind](host, rows, body)
    return leave(kind, host, body, answered) if host.config.privacy.enabled else answered


def roster(host: ClientHost, _: Rows, body: Body) -> Answered:
    """Which clients a node hosts.

    Of ``nodes`` nodes it is the one numbered ``node``, as its own config says.
    """
    nodes, everyone = int(body["nodes"]), [*host.data.clients, *host.data.held_out]
    if host.device is not None:
        nodes, clients = 1, everyone
    else:
        protected = host.config.privacy.protects_counts
        sizes = {client: 0 if protected else host.data.size(client) for client in everyone}
        clients = deal(sizes, nodes)[int(body["node"])]
    said = {}
    if "channel" in body:
        training = [client for client in clients if client not in host.data.held_out]
        with withheld(KEY) if host.device is not None else nullcontext():
            said = {"channel": host.channel.introduction(host, training, body["channel"])}
    answer = {
        "clients": clients,
        "held_out": [client for client in clients if client in host.data.held_out],
        "nodes": nodes,
        "scored": type(host.algorithm).scored,
        **said,
    }
    return [], answer


def train(host: ClientHost, rows: Rows, body: Body) -> Answered:
    """Train the clients named; their updates are one row each, in the order of ``clients``; none
    where the channel keeps them."""
    opened = _arrived(host, rows, body)
    updates: Rows = []
    reports: dict[str, dict[str, Any]] = {}
    server_round, terms = body["round"], body.get("channel", {})
    broadcasts = {client: opened[body["rows"][client]] for client in body["clients"]}
    trained = host.train_all(broadcasts, server_round, body.get("said", {}))

    def one(host: ClientHost, client: str) -> None:
        answer = trained.pop(client)
        if isinstance(answer, Exception):
            raise answer
        update, report = answer
        also = host.channel.derives(terms, list(broadcasts[client]))
        made = host.with_derived(update, also)
        leaving = Leaving(client, server_round, made, report, body, broadcasts[client])
        row = host.channel.leave(host, leaving)
        if row is not None:
            updates.append(row)
        reports[client] = dict(host.channel.disclosed(report))

    failed = _each(host, body, one)
    told = {"reports": reports, **_missing("train", host, failed)}
    return updates, {**told, **host.channel.take_seconds()}


def poll(host: ClientHost, rows: Rows, body: Body) -> Answered:
    """What the clients named tell before a round, see ``LocalAlgorithm.poll``."""
    opened = _arrived(host, rows, body)
    told: dict[str, dict[str, float]] = {}

    def one(host: ClientHost, client: str) -> None:
        broadcast, said = opened[body["rows"][client]], body.get("said", {}).get(client, NOTHING)
        told[client] = telling.poll(host, client, body["round"], broadcast, said)

    failed = _each(host, body, one)
    return [], {"told": told, **_missing("poll", host, failed)}


def pool(host: ClientHost, rows: Rows, body: Body) -> Answered:
    """What the clients named add to a sum over all, see ``LocalAlgorithm.pool``; it leaves as an
    update does."""
    opened, vectors = _arrived(host, rows, body), list[Row]()
    reports: dict[str, dict[str, Any]] = {}

    def one(host: ClientHost, client: str) -> None:
        broadcast, said = opened[body["rows"][client]], body.get("said", {}).get(client, NOTHING)
        vector, report = pooling.pool(host, client, str(body["about"]), body, broadcast, said)
        row = host.channel.leave(host, Leaving(client, body["round"], vector, report, body))
        if row is not None:
            vectors.append(row)
        reports[client] = dict(host.channel.disclosed(report))

    failed = _each(host, body, one)
    told = {"reports": reports, **_missing("pool", host, failed)}
    return vectors, {**told, **host.channel.take_seconds()}


def method(host: ClientHost, rows: Rows, body: Body) -> Answered:
    """What the clients named answer to a message of the method's own."""
    opened = _arrived(host, rows, body)
    answers: dict[str, Mapping[str, Any]] = {}

    def one(host: ClientHost, client: str) -> None:
        kind, asks = str(body["kind"]), body["asks"][client]
        broadcast = opened[body["rows"][client]]
        answers[client] = telling.ask(host, kind, client, body["round"], broadcast, asks)

    failures = _reasons("method", host, _each(host, body, one))
    return [], {"answers": answers, "failures": failures}


def channel(keeper: Keeper, rows: Rows, body: Body) -> Answered:
    """Answer a message of the channel's own.

    Raises:
        ClientError: it has none of that kind.
    """
    kind, kinds = str(body["kind"]), keeper.channel.kinds
    if kind not in kinds:
        takes = ", ".join(kinds) or "none"
        raise ClientError(f"message: got {kind!r} for the channel, which takes {takes}")
    answered, told = kinds[kind](keeper, rows, body)
    if "failures" in told:
        told = {**told, "failures": _reasons(kind, keeper, told["failures"])}
    return answered, told


def baseline(host: ClientHost, _: Rows, body: Body) -> Answered:
    """Train the local-only baseline of the clients named. Nothing of it leaves them."""
    failures = _reasons("baseline", host, host.train_baselines(body["clients"]))
    return [], {"failures": {} if host.holds_back else failures}


def evaluate(host: ClientHost, rows: Rows, body: Body) -> Answered:
    """Evaluate the clients named: counts of right and wrong answers, no example."""
    opened = _arrived(host, rows, body)
    results: list[dict[str, Any]] = []

    def one(host: ClientHost, client: str) -> None:
        row, common = opened[body["rows"][client]], body.get("common", True)
        said = body.get("said", {}).get(client, {})
        result = host.evaluate(client, body["round"], row, common=common, said=said)
        results.append(result.to_json())

    failures = _reasons("evaluate", host, _each(host, body, one))
    if host.holds_back:
        return [], {"results": [], "held_back": True, "failures": {}}
    return [], {"results": results, "held_back": False, "failures": failures}


def newcomers(host: ClientHost, rows: Rows, body: Body) -> Answered:
    """Evaluate clients that never trained, after so many local batches each."""
    results: dict[int, list[dict[str, Any]]] = {batches: [] for batches in body["batches"]}
    if host.holds_back:
        return [], {"results": results, "failures": {}}
    opened = _arrived(host, rows, body)

    def one(host: ClientHost, client: str) -> None:
        for batches, found in results.items():
            row = opened[body["rows"][client]]
            said = body.get("said", {}).get(client, {})
            found.append(host.newcomer(client, body["round"], row, batches, said).to_json())

    failures = _reasons("newcomers", host, _each(host, body, one))
    return [], {"results": results, "failures": failures}


def export(host: ClientHost, _: Rows, body: Body) -> Answered:
    """Save the clients' evaluated models as PEFT folders, on this machine."""

    def one(host: ClientHost, client: str) -> None:
        folder = host.stores.parent / "adapters"
        known = (host.model, host.store(client), host.config)
        manifest = {**body["manifests"][client], "inputs": asdict(host.data.scaling_of(client))}
        export_model(*known, client, body["round"], folder, manifest)

    failures = _reasons("export", host, _each(host, body, one))
    return [], {"failures": {} if host.holds_back else failures}


def _arrived(host: ClientHost, rows: Rows, body: Body) -> list[Parts]:
    """What came, in the clear, with what all clients have."""
    return [parts | host.known for parts in host.channel.arrive(host, rows, body)]


def _each(host: Node, body: Body, work: Callable[[Node, str], None]) -> dict[str, Exception]:
    """Do ``work`` for every client named; what those that failed raised. One that fails costs
    itself, not its host's others."""
    failed: dict[str, Exception] = {}
    for client in body["clients"]:
        try:
            work(host, client)
        except Exception as error:  # whatever a client's data or a plug-in may raise
            failed[client] = error
    return failed


def _missing(kind: str, host: ClientHost, failed: Mapping[str, Exception]) -> dict[str, Any]:
    """Why each client failed, and what those have left whose budget it was."""
    spent = {c: host.spending(c) for c, error in failed.items() if isinstance(error, BudgetSpent)}
    return {"failures": _reasons(kind, host, failed), "spent": spent}


def _reasons(kind: str, host: Keeper, failed: Mapping[str, Exception]) -> dict[str, str]:
    """Why each client failed, as the server is told."""
    return {c: host.reasons.of(f"{kind} of client {c}", error) for c, error in failed.items()}


ANSWERS: dict[str, Callable[[Any, Rows, Body], Answered]] = {
    "roster": roster,
    "train": train,
    "channel": channel,
    "poll": poll,
    "pool": pool,
    "method": method,
    "baseline": baseline,
    "evaluate": evaluate,
    "newcomers": newcomers,
    "export": export,
}
