"""A server of sealed updates, in front of toy nodes that seal, some of them badly."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedpers.channels.base import Opening
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.node import ClientSide
from fedpers.channels.sealed import (
    ClientCipher,
    KeyPair,
    client_from,
    generate,
    parameters_for,
)
from fedpers.channels.sealed.node import SealedNode
from fedpers.channels.sealed.sealed_parts import (
    Group,
    SealedParts,
    open_parts,
    seal_parts,
    sign_parts,
)
from fedpers.channels.sealed.statement import Place, Statement, Term, digest_of
from fedpers.config import load_config
from fedpers.errors import ClientError
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


class Stores:
    """What clients keep, in memory, and their folders."""

    def __init__(self, home: Path) -> None:
        self.home, self.updates = home, dict[tuple[str, int], Parts]()

    def hold(self, client: str, server_round: int, update: Parts) -> None:
        self.updates[client, server_round] = update

    def held(self, client: str, server_round: int) -> Parts:
        return self.updates[client, server_round]

    def folder(self, client: str) -> Path:
        return self.home / client


class SealingNodes(SerialGrid):
    """Nodes whose clients send parts that are all their number, and have as many examples.

    They open what the server asks for as real ones do.

    Args:
        home: for the clients' stores.
        spoils: by client, what it makes of its sealed parts before it signs them; by node, of its
            whole reply.
        keys: by node, another key than the others'.
    """

    def __init__(
        self,
        scheme: str,
        home: Path,
        hosts: Sequence[Sequence[str]] = HOSTS,
        spoils: Mapping[str | int, Any] | None = None,
        keys: Mapping[int, int] | None = None,
    ) -> None:
        self.hosts, self.spoils = [list(clients) for clients in hosts], dict(spoils or {})
        self.pairs = [pair(scheme, (keys or {}).get(node, 0)) for node in range(len(hosts))]
        self.cipher: ClientCipher = client_from(pair(scheme, 0).client)
        self.heads: dict[str, torch.Tensor] = {}
        self.after: Any = None  # what becomes of a client's signed parts on their way
        self.says: Any = None  # what a node answers to the channel's messages instead, by kind
        self.asked: list[tuple[int, str]] = []  # each such message: to which node, of which kind
        self.kept = Stores(home)
        method = ClientSide(("logits", "unit"), lambda row: [1.0] * len(row))
        self.nodes = [
            SealedNode(load_config(None, []), "stores", 8, known(0), None, method) for _ in hosts
        ]
        for node in self.nodes:
            node.__dict__["cipher"] = self.cipher
        app = ClientApp()
        app.query("roster")(self._roster)
        app.train()(self._train)
        app.query("channel")(self._channel)
        super().__init__(app, nodes=len(self.hosts))

    def identity(self, client: str) -> Identity:
        """A client's keys."""
        return self.nodes[0].identities.identity(self.kept, client)

    def _roster(self, message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        made = self.pairs[node]
        key = {"id": made.key_id, "context": base64.b64encode(made.server).decode()}
        publics = Registry([self.identity(client).public for client in self.hosts[node]])
        body = {
            "clients": self.hosts[node],
            "nodes": len(self.hosts),
            "scored": "toy",
            "channel": {**key, "identities": publics.to_json()},
        }
        return Message(pack([], body), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        rows, body = unpack(message.content)
        terms, uploads = body["channel"], []
        opened = self.nodes[0].arrive(self.kept, rows, body)
        layouts = {n: p.layout for row in opened for n, p in row.items()}
        for client in body["clients"]:
            parts = {n: Part(x, torch.full((x.size,), float(client))) for n, x in layouts.items()}
            for names, _ in terms["groups"]:
                parts |= {n: self._derived(n, client) for n in names if n not in parts}
            if client in self.heads:
                parts["unit"] = Part.of({"rows": self.heads[client]})
            if terms["seal_at_once"]:
                weight = body.get("weights", {}).get(client, 1.0)
                uploads.append(self._sealed(client, Parts(parts), body, weight))
            else:
                self.layouts = layouts
        reports = {c: {"examples": int(c), "loss": 0.5} for c in body["clients"]}
        return self._reply(message, context, uploads, {"reports": reports})

    def _derived(self, name: str, client: str) -> Part:
        if name == "logits":
            return Part.of({"logits": torch.full((50, 2), float(client))})
        return Part.of({"rows": torch.ones(2, 2) / 2**0.5})

    def _channel(self, message: Message, context: Context) -> Message:
        rows, body = unpack(message.content)
        kind, node = str(body["kind"]), int(context.node_config["partition-id"])
        self.asked.append((node, kind))
        if kind == "seal":
            return self._seal(message, context)
        answered, told = self.nodes[node].kinds[kind](self.kept, rows, body)
        if self.says is not None:
            answered, told = self.says(node, kind, answered, told)
        told["failures"] = {c: str(why) for c, why in told.get("failures", {}).items()}
        return Message(pack(answered, told), reply_to=message)

    def _seal(self, message: Message, context: Context) -> Message:
        _, body = unpack(message.content)
        uploads = []
        for client in body["clients"]:
            parts = {
                n: Part(x, torch.full((x.size,), float(client))) for n, x in self.layouts.items()
            }
            uploads.append(self._sealed(client, Parts(parts), body, body["weights"][client]))
        return self._reply(message, context, uploads, {})

    def _sealed(self, client: str, parts: Parts, body: Mapping[str, Any], weight: float) -> Any:
        groups = [Group.from_json(group) for group in body["channel"]["groups"]]
        source = known(int(client))()
        sealed = seal_parts(self.cipher, parts, groups, range=8.0, weight=weight, source=source)
        made = self.spoils.get(client, lambda found: found)(sealed)
        if isinstance(made, SealedParts) and not isinstance(made, Raw):
            made = self.signed(client, made, body["round"], weight)
        return made if self.after is None else self.after(client, body["round"], made)

    def signed(
        self, client: str, sealed: SealedParts, server_round: int, weight: float = 1.0
    ) -> SealedParts:
        """Parts with a client's word for them, whatever they are."""
        own = self.identity(client)
        try:
            return sign_parts(self.cipher, own, "", server_round, sealed, weight)
        except ClientError:  # it has no tag, so it is given one
            terms = []
            for group, blob in zip(sealed.groups, sealed.blobs, strict=True):
                word = Statement(client, server_round, weight, digest_of(blob), bytes(16))
                terms.append((Term(word.by(own, Place("", group.part))),))
            return replace(sealed, terms=tuple(terms))

    def _reply(
        self, message: Message, context: Context, rows: Sequence[Any], body: dict[str, Any]
    ) -> Message:
        content = pack(rows, {"failures": {}, "seconds": 0.1, **body})
        spoil = self.spoils.get(int(context.node_config["partition-id"]))
        if spoil is not None and rows:
            spoil(content)
        return Message(content, reply_to=message)


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
