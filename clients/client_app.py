"""The ClientApp: what a node answers. One message a round for all the clients it hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.dealing import deal
from clients.device import Device
from clients.host import ClientHost, host_of
from clients.keeper import Keeper, keeper_of
from clients.pfedsim import weights_of
from fedpers.data import Task
from fedpers.encryption.sealed_parts import SealedParts
from fedpers.errors import FedpersError
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent
from fedpers.records import Row, in_the_clear, pack, unpack

app = ClientApp()
SPENT = f"{BudgetSpent.__name__}:"
log = logging.getLogger("fedpers")
Node = TypeVar("Node", bound=Keeper)


@app.query("roster")
def roster(message: Message, context: Context) -> Message:
    """Which clients this node hosts, after checking that it can run the method at all.

    The first message of a run: a node that cannot run the method as configured says so in one
    line, before anything was trained.
    """
    rows, body = unpack(message.content)
    try:
        device = Device.of(context.node_config)
        if device is not None and body["base"] is not None:
            for row in rows:  # the second time it is asked
                device.keep_base(in_the_clear(row))
            if not device.base(body["base"]):
                return _reply(message, [], {"needs": "base"})
        host = _host(body, context)
        host.check()
    except FedpersError as error:
        return _reply(message, [], {"refused": str(error)})
    except Exception as error:  # a plug-in's mistake: asking again would not mend it
        log.exception("this node cannot run the method")
        return _reply(message, [], {"refused": _line(error)})
    key = {}
    if "sealing" in body:
        try:
            key = {"key": host.sealer.serve(body["sealing"]).key()}
        except FedpersError as error:
            return _reply(message, [], {"refused": str(error)})
    nodes = int(context.node_config.get("num-partitions", 1))
    node = int(context.node_config.get("partition-id", 0))
    everyone = [*host.data.clients, *host.data.held_out]
    if host.device is not None:
        nodes, clients = 1, everyone
    else:
        clients = deal({client: host.data.size(client) for client in everyone}, nodes)[node]
    answer = {
        "clients": clients,
        "held_out": [client for client in clients if client in host.data.held_out],
        "nodes": nodes,
        "scored": host.algorithm.scored,
        **key,
    }
    return _reply(message, [], answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients named; their uploads are one row each, in the order of ``clients``.

    Under encryption the uploads are sealed, multiplied by ``weights``; or kept, where those are not
    known yet.
    """
    rows, body = _opened(message, context)
    uploads: list[Row] = []
    reports: dict[str, dict[str, Any]] = {}
    sealing, server_round = body.get("sealing"), body["round"]
    broadcasts = {client: rows[body["rows"][client]] for client in body["clients"]}
    started = time.perf_counter()
    trained = _host(body, context).train_all(broadcasts, server_round)
    training = time.perf_counter() - started

    def one(host: ClientHost, client: str) -> None:
        answer = trained.pop(client)
        if isinstance(answer, Exception):
            raise answer
        upload, report = answer
        if sealing is None:
            uploads.append(upload)
        else:
            broadcast = broadcasts[client]
            also = [n for names, _ in sealing["groups"] for n in names if n not in broadcast]
            upload = host.with_derived(client, server_round, upload, also)
            if sealing["seal_at_once"]:
                where = {"client": client, "server_round": server_round}
                weight = float(body.get("weights", {}).get(client, 1.0))
                uploads.append(host.sealer.sealed(upload, sealing, weight=weight, **where))
            else:
                host.hold(client, server_round, upload)
        reports[client] = report

    host = _host(body, context)
    failures, seconds = _each(host, body, one)
    spent = {c: host.spending(c) for c, reason in failures.items() if reason.startswith(SPENT)}
    times = {"seconds": training + seconds, **host.sealer.take_seconds()}
    answer = {"reports": reports, "failures": failures, "spent": spent, **times}
    return _reply(message, uploads, answer)


@app.train("seal")
def seal(message: Message, context: Context) -> Message:
    """Seal what the clients named kept, multiplied by their weights."""
    _, body = unpack(message.content)
    uploads: list[Row] = []
    keeper = _keeper(body, context)

    def one(host: Keeper, client: str) -> None:
        upload, weight = host.held(client, body["round"]), float(body["weights"][client])
        where = {"client": client, "server_round": body["round"]}
        uploads.append(host.sealer.sealed(upload, body["sealing"], weight=weight, **where))

    failures, seconds = _each(keeper, body, one)
    times = {"seconds": seconds, **keeper.sealer.take_seconds()}
    return _reply(message, uploads, {"failures": failures, **times})


@app.query("open")
def open_means(message: Message, context: Context) -> Message:
    """Open means that the server needs in the clear, as the method's strategy says."""
    rows, body = unpack(message.content)
    sealer = _keeper(body, context).sealer
    return _reply(message, [sealer.opened(row) for row in rows], {})


@app.query("similarity")
def similarity(message: Message, context: Context) -> Message:
    """For each client named, the weights of all clients by the similarity of their heads, rounded:
    products as they are would tell about the key, and more about heads than is needed."""
    (row,), body = unpack(message.content)
    assert isinstance(row, SealedParts)
    others, weights = body["of"] - 1, {}
    products = _keeper(body, context).sealer.cosines(row)
    for k, (client, place) in enumerate(zip(body["clients"], body["places"], strict=True)):
        cosines = products[k * others : (k + 1) * others]
        cosines.insert(place, 1.0)
        weights[client] = weights_of(cosines)
    return _reply(message, [], {"rows": weights})


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Throw away the key that was made for the run."""
    _, body = unpack(message.content)
    _keeper(body, context).sealer.forget()
    return _reply(message, [], {})


@app.train("baseline")
def train_baseline(message: Message, context: Context) -> Message:
    """Train the local-only baseline of the clients named. Nothing of it leaves them."""
    _, body = unpack(message.content)
    started = time.perf_counter()
    failed = _host(body, context).train_baselines(body["clients"])
    failures = {client: _line(error) for client, error in failed.items()}
    return _reply(message, [], {"failures": failures, "seconds": time.perf_counter() - started})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients named: counts of right and wrong answers, no example."""
    rows, body = _opened(message, context)
    results: list[dict[str, Any]] = []
    host = _host(body, context)
    held_back = host.holds_back

    def one(host: ClientHost, client: str) -> None:
        result = host.evaluate(client, body["round"], rows[body["rows"][client]])
        if not held_back:
            results.append(result.to_json())

    failures, seconds = _each(host, body, one)
    answer = {"results": results, "held_back": held_back, "failures": failures, "seconds": seconds}
    return _reply(message, [], answer)


@app.evaluate("newcomers")
def evaluate_newcomers(message: Message, context: Context) -> Message:
    """Evaluate clients that never trained, after so many local batches each."""
    rows, body = _opened(message, context)
    results: dict[int, list[dict[str, Any]]] = {batches: [] for batches in body["batches"]}
    host = _host(body, context)
    held_back = host.holds_back

    def one(host: ClientHost, client: str) -> None:
        if held_back:
            return
        for batches, found in results.items():
            row = rows[body["rows"][client]]
            found.append(host.newcomer(client, body["round"], row, batches).to_json())

    failures, seconds = _each(host, body, one)
    answer = {"results": results, "failures": failures, "seconds": seconds}
    return _reply(message, [], answer)


@app.query("export")
def export(message: Message, context: Context) -> Message:
    """Save the clients' evaluated models as PEFT folders, on this machine."""
    _, body = unpack(message.content)

    def one(host: ClientHost, client: str) -> None:
        folder = host.stores.parent / "adapters"
        host.export(client, body["round"], folder, body["manifests"][client])

    failures, seconds = _each(_host(body, context), body, one)
    return _reply(message, [], {"failures": failures, "seconds": seconds})


def _opened(message: Message, context: Context) -> tuple[list[Parts], dict[str, Any]]:
    """The rows of a message in the clear, and its body."""
    rows, body = unpack(message.content)
    sealer = _host(body, context).sealer
    return [sealer.opened(row) for row in rows], body


def _each(
    host: Node, body: dict[str, Any], work: Callable[[Node, str], None]
) -> tuple[dict[str, str], float]:
    """Do ``work`` for every client named. One that fails costs itself, not its host's others."""
    started, failures = time.perf_counter(), {}
    for client in body["clients"]:
        try:
            work(host, client)
        except Exception as error:  # whatever a client's data or a plug-in may raise
            log.debug("client %s failed", client, exc_info=True)
            failures[client] = _line(error)
    return failures, time.perf_counter() - started


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _host(body: dict[str, Any], context: Context) -> ClientHost:
    return host_of(
        body["settings"],
        body["algorithm"],
        tuple(body["server_params"]),
        body["run_folder"],
        Device.of(context.node_config),
        body["base"],
        Task(body["task"][0], tuple(body["task"][1]), body["task"][2]),
    )


def _keeper(body: dict[str, Any], context: Context) -> Keeper:
    """The node's stores and key: a simulation's host has them, a device's process need not load
    its model for them."""
    device = Device.of(context.node_config)
    if device is None:
        return _host(body, context)
    return keeper_of(body["settings"], body["run_folder"], device)


def _reply(message: Message, rows: Sequence[Row], body: dict[str, Any]) -> Message:
    return Message(pack(rows, body), reply_to=message)
