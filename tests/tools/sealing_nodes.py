"""A server of sealed updates, in front of toy nodes that seal, some of them badly."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedpers.channels.base import Opening
from fedpers.channels.sealed import (
    ClientCipher,
    KeyPair,
    client_from,
    generate,
    parameters_for,
)
from fedpers.channels.sealed.sealed_parts import Group, SealedParts, open_parts, seal_parts
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import known
from fedpers.records import pack, unpack
from simulations.backends.serial import SerialGrid
from strategies.exchange import send_and_receive
from strategies.run import Run

HOSTS = (("1", "2"), ("3",), ("4",))


@cache
def pair(scheme: str, which: int) -> KeyPair:
    return generate(parameters_for(scheme, 8, rows=scheme == "ckks"))


class Raw(SealedParts):
    """Bytes that are sent in the place of sealed parts."""

    def to_bytes(self) -> bytes:
        return self.data  # type: ignore[attr-defined, no-any-return]


def raw(data: bytes) -> Raw:
    made = Raw({}, (), ())
    made.__dict__["data"] = data
    return made


class SealingNodes(SerialGrid):
    """Nodes whose clients send parts that are all their number, and have as many examples.

    Args:
        spoils: by client, what it makes of its sealed parts; by node, of its whole reply.
        keys: by node, another key than the others'.
    """

    def __init__(
        self,
        scheme: str,
        hosts: Sequence[Sequence[str]] = HOSTS,
        spoils: Mapping[str | int, Any] | None = None,
        keys: Mapping[int, int] | None = None,
    ) -> None:
        self.hosts, self.spoils = [list(clients) for clients in hosts], dict(spoils or {})
        self.pairs = [pair(scheme, (keys or {}).get(node, 0)) for node in range(len(hosts))]
        self.cipher: ClientCipher = client_from(pair(scheme, 0).client)
        self.heads: dict[str, torch.Tensor] = {}
        self.opens: Any = None  # what nodes say that they opened, by node; None: what it is
        self.weighs: Any = None  # the same of the similarities
        app = ClientApp()
        app.query("roster")(self._roster)
        app.train()(self._train)
        app.query("channel")(self._channel)
        super().__init__(app, nodes=len(self.hosts))

    def _roster(self, message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        made = self.pairs[node]
        key = {"id": made.key_id, "context": base64.b64encode(made.server).decode()}
        body = {
            "clients": self.hosts[node],
            "nodes": len(self.hosts),
            "scored": "toy",
            "channel": key,
        }
        return Message(pack([], body), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        rows, body = unpack(message.content)
        terms, uploads = body["channel"], []
        layouts = {n: p.layout for row in rows for n, p in open_any(self.cipher, row).items()}
        for client in body["clients"]:
            parts = {n: Part(x, torch.full((x.size,), float(client))) for n, x in layouts.items()}
            for names, _ in terms["groups"]:
                parts |= {n: self._derived(n, client) for n in names if n not in parts}
            if client in self.heads:
                parts["unit"] = Part.of({"rows": self.heads[client]})
            if terms["seal_at_once"]:
                weight = body.get("weights", {}).get(client, 1.0)
                uploads.append(self._sealed(client, Parts(parts), terms, weight))
            else:
                self.layouts = layouts
        reports = {c: {"examples": int(c), "loss": 0.5} for c in body["clients"]}
        return self._reply(message, context, uploads, {"reports": reports})

    def _derived(self, name: str, client: str) -> Part:
        if name == "logits":
            return Part.of({"logits": torch.full((50, 2), float(client))})
        return Part.of({"rows": torch.ones(2, 2) / 2**0.5})

    def _channel(self, message: Message, context: Context) -> Message:
        kinds = {"seal": self._seal, "open": self._open, "similarity": self._similarity}
        return kinds[unpack(message.content)[1]["kind"]](message, context)

    def _seal(self, message: Message, context: Context) -> Message:
        _, body = unpack(message.content)
        uploads = []
        for client in body["clients"]:
            parts = {
                n: Part(x, torch.full((x.size,), float(client))) for n, x in self.layouts.items()
            }
            weight = body["weights"][client]
            uploads.append(self._sealed(client, Parts(parts), body["channel"], weight))
        return self._reply(message, context, uploads, {})

    def _sealed(
        self, client: str, parts: Parts, terms: Mapping[str, Any], weight: float
    ) -> SealedParts:
        groups = [Group.from_json(group) for group in terms["groups"]]
        source = known(int(client))()
        sealed = seal_parts(self.cipher, parts, groups, range=8.0, weight=weight, source=source)
        return self.spoils.get(client, lambda found: found)(sealed)  # type: ignore[no-any-return]

    def _reply(
        self, message: Message, context: Context, rows: Sequence[Any], body: dict[str, Any]
    ) -> Message:
        content = pack(rows, {"failures": {}, "seconds": 0.1, **body})
        spoil = self.spoils.get(int(context.node_config["partition-id"]))
        if spoil is not None and rows:
            spoil(content)
        return Message(content, reply_to=message)

    def _open(self, message: Message, context: Context) -> Message:
        ((row,), _) = unpack(message.content)
        node = int(context.node_config["partition-id"])
        assert isinstance(row, SealedParts)
        answer = self.opens(node, row) if self.opens else open_parts(self.cipher, row)
        return Message(pack([answer], {}), reply_to=message)

    def _similarity(self, message: Message, context: Context) -> Message:
        _, body = unpack(message.content)
        rows = {client: [1.0] * body["of"] for client in body["clients"]}
        if self.weighs is not None:
            rows = self.weighs(int(context.node_config["partition-id"]), rows)
        return Message(pack([], {"rows": rows}), reply_to=message)


def open_any(cipher: ClientCipher, row: Any) -> Parts:
    return row if isinstance(row, Parts) else open_parts(cipher, row)


class Server:
    """A run on sealed updates in front of its nodes."""

    def __init__(self, strategy: Any, grid: SealingNodes, state: Path) -> None:
        self.run, self.grid = Run(strategy), grid
        self.run.post.grid = grid
        self.run.roster.refresh(grid, pack([], self.run.post.header()), timeout=0.05)
        clients, said = len(self.run.roster.clients), self.run.roster.said
        strategy.channel.open(Opening(self.run.post, clients, said, state))
        self.run.roster.admits = strategy.channel.admits

    @property
    def strategy(self) -> Any:
        """What is run."""
        return self.run.method

    def train(self, server_round: int = 1) -> dict[str, str]:
        """One round; who was left out, and why."""
        messages = self.run.configure_train(server_round, ArrayRecord(), ConfigRecord(), self.grid)
        replies = send_and_receive(self.grid, list(messages), timeout=0.05)
        self.run.aggregate_train(server_round, replies)
        return dict(self.run.round.answers.failures)

    def mean(self) -> float:
        """The value that all global parts have, by the clients' key."""
        parts = open_any(self.grid.cipher, self.strategy.parts)
        vector = torch.cat([part.vector for part in parts.values()])
        assert float(vector.max() - vector.min()) < 1e-3
        return float(vector.mean())


# By weights: after the reports (sealed in a second message), at once, by row.
PATHS = [("fedavg", "bfv"), ("fedavg", "ckks"), ("perada", "bfv"), ("pfedsim", "ckks")]
MEANS = {
    "fedavg": [],
    "perada": ["strategy.params.distill=false"],
    "pfedsim": ["strategy.params.rho=1", "rounds=100000"],
}


def expected(name: str, clients: Sequence[int]) -> float:
    """Equal weights, or by examples, of which each client has its number."""
    weights = [1 if name == "perada" else client for client in clients]
    return sum(w * c for w, c in zip(weights, clients, strict=True)) / sum(weights)
