"""The ClientApp: what a node answers. One message a round for all the clients it hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.host import ClientHost, deal, host_of
from fedpers.errors import FedpersError
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent
from fedpers.records import pack, unpack

app = ClientApp()
SPENT = f"{BudgetSpent.__name__}:"
log = logging.getLogger("fedpers")


@app.query("roster")
def roster(message: Message, context: Context) -> Message:
    """Which clients this node hosts, after checking that it can run the method at all.

    The first message of a run: a node that cannot run the method as configured says so in one
    line, before anything was trained.
    """
    _, body = unpack(message.content)
    try:
        host = _host(body)
    except FedpersError as error:
        return _reply(message, [], {"refused": str(error)})
    except Exception as error:  # a plug-in's mistake: asking again would not mend it
        log.exception("this node cannot run the method")
        return _reply(message, [], {"refused": _line(error)})
    nodes = int(context.node_config.get("num-partitions", 1))
    node = int(context.node_config.get("partition-id", 0))
    everyone = [*host.data.clients, *host.data.held_out]
    clients = deal({client: host.data.size(client) for client in everyone}, nodes)[node]
    answer = {
        "clients": clients,
        "held_out": [client for client in clients if client in host.data.held_out],
        "nodes": nodes,
        "scored": host.algorithm.scored,
    }
    return _reply(message, [], answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients named; their uploads are one row each, in the order of ``clients``."""
    rows, body = unpack(message.content)
    uploads: list[Parts] = []
    reports: dict[str, dict[str, Any]] = {}

    def one(host: ClientHost, client: str) -> None:
        upload, report = host.train(client, body["round"], rows[body["rows"][client]])
        uploads.append(upload)
        reports[client] = report

    failures, seconds = _each(body, one)
    host = _host(body)
    spent = {c: host.spending(c) for c, reason in failures.items() if reason.startswith(SPENT)}
    answer = {"reports": reports, "failures": failures, "spent": spent, "seconds": seconds}
    return _reply(message, uploads, answer)


@app.train("baseline")
def train_baseline(message: Message, context: Context) -> Message:
    """Train the local-only baseline of the clients named. Nothing of it leaves them."""
    _, body = unpack(message.content)
    failures, seconds = _each(body, lambda host, client: host.train_baseline(client))
    return _reply(message, [], {"failures": failures, "seconds": seconds})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients named: counts of right and wrong answers, no example."""
    rows, body = unpack(message.content)
    results: list[dict[str, Any]] = []
    held_back = _host(body).holds_back

    def one(host: ClientHost, client: str) -> None:
        result = host.evaluate(client, body["round"], rows[body["rows"][client]])
        if not held_back:
            results.append(result.to_json())

    failures, seconds = _each(body, one)
    answer = {"results": results, "held_back": held_back, "failures": failures, "seconds": seconds}
    return _reply(message, [], answer)


@app.evaluate("newcomers")
def evaluate_newcomers(message: Message, context: Context) -> Message:
    """Evaluate clients that never trained, after so many local batches each."""
    rows, body = unpack(message.content)
    results: dict[int, list[dict[str, Any]]] = {batches: [] for batches in body["batches"]}
    held_back = _host(body).holds_back

    def one(host: ClientHost, client: str) -> None:
        if held_back:
            return
        for batches, found in results.items():
            row = rows[body["rows"][client]]
            found.append(host.newcomer(client, body["round"], row, batches).to_json())

    failures, seconds = _each(body, one)
    answer = {"results": results, "failures": failures, "seconds": seconds}
    return _reply(message, [], answer)


@app.query("export")
def export(message: Message, context: Context) -> Message:
    """Save the clients' evaluated models as PEFT folders, on this machine."""
    _, body = unpack(message.content)
    folder = Path(body["run_folder"]) / "adapters"

    def one(host: ClientHost, client: str) -> None:
        host.export(client, body["round"], folder, body["manifests"][client])

    failures, seconds = _each(body, one)
    return _reply(message, [], {"failures": failures, "seconds": seconds})


def _each(
    body: dict[str, Any], work: Callable[[ClientHost, str], None]
) -> tuple[dict[str, str], float]:
    """Do ``work`` for every client named. One that fails costs itself, not its host's others."""
    started, failures, host = time.perf_counter(), {}, _host(body)
    for client in body["clients"]:
        try:
            work(host, client)
        except Exception as error:  # whatever a client's data or a plug-in may raise
            log.debug("client %s failed", client, exc_info=True)
            failures[client] = _line(error)
    return failures, time.perf_counter() - started


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _host(body: dict[str, Any]) -> ClientHost:
    return host_of(
        body["settings"], body["algorithm"], tuple(body["server_params"]), body["run_folder"]
    )


def _reply(message: Message, rows: list[Parts], body: dict[str, Any]) -> Message:
    return Message(pack(rows, body), reply_to=message)
