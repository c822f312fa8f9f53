"""A simulation in which things go wrong, for tests: seeded faults of clients, nodes, disks, clocks
and messages, in one process."""

from __future__ import annotations

import copy
import errno
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.node import keeper
from clients.node.store import ClientStore
from clients.training import account
from fedpers.parts import Parts
from fedpers.privacy import Ledger
from fedpers.privacy.ledger import Kept
from fedpers.records import unpack
from simulations.backends.serial import SerialGrid

KINDS = {
    "client": "a client raises, before its training or when its result is kept",
    "node": "a node raises, before or after its clients have trained",
    "lost": "a reply never comes",
    "twice": "a reply comes twice",
    "again": "a message reaches its node twice",
    "stale": "a reply to an earlier message comes once more",
    "damage": "the last file of a client's personal model is damaged",
    "full": "the disk is full, for a client's ledger or for what it keeps",
    "clock": "the clock of the machine jumps by up to a month",
    "moves": "a node leaves, and is back after the round under another id",
}
MONTH = 30 * 86400


class Fault(NamedTuple):
    """What goes wrong in a round at a node; ``turn`` (0 or 1) is which of its two forms."""

    server_round: int
    node: int
    kind: str
    turn: int


def plan(seed: int, count: int, *, rounds: int, nodes: int) -> list[Fault]:
    """``count`` faults, as many of each kind, at random rounds and nodes; one a round and node."""
    rng = random.Random(seed)
    everywhere = [(r, n) for r in range(1, rounds + 1) for n in range(nodes)]
    kinds = [list(KINDS)[k % len(KINDS)] for k in range(count)]
    places = rng.sample(everywhere, count)
    return [Fault(*at, kind, rng.randrange(2)) for at, kind in zip(places, kinds, strict=True)]


class Trouble:
    """Whom a fault hits in the round under way; what stores and ledgers look at."""

    def __init__(self) -> None:
        self.hit: dict[str, tuple[str, int]] = {}  # by client: kind and turn
        self.at_work = ""  # the client whose store was opened last
        self.emptied: list[str] = []  # clients that had kept something, and found nothing

    def strike(self, client: str, kind: str, turn: int) -> None:
        """Raise if this form of a fault hits the client now."""
        if self.hit.get(client) != (kind, turn):
            return
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise RuntimeError(f"client {client} breaks down")


class FaultyGrid(SerialGrid):
    """Nodes to which faults happen in training.

    Args:
        faults: what, when and where.
        state: the folder of the clients' stores.

    Attributes:
        came: for each client, the uploads that reached the server: round and digest.
        happened: how often each kind of fault did something.
    """

    def __init__(
        self, app: ClientApp, faults: Iterable[Fault], state: Path, *, nodes: int, threads: int = 1
    ) -> None:
        super().__init__(app, nodes=nodes, threads=threads)
        self.trouble, self.state, self.rng = Trouble(), state, random.Random(0)
        self.came: dict[str, set[tuple[int, str]]] = defaultdict(set)
        self.happened: dict[str, int] = defaultdict(int)
        self.clock = 0.0  # seconds that it is ahead
        self._faults = {(f.server_round, f.node): f for f in faults}
        self._asked: dict[str, tuple[int, list[str]]] = {}
        self._extra: list[Message] = []
        self._earlier: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered, or not, as its fault says."""
        ids: list[str] = []
        for message in messages:
            if message.metadata.message_type != "train":
                ids += super().push_messages([message])
                continue
            _, body = unpack(message.content)
            node = self._contexts[message.metadata.dst_node_id].node_config["partition-id"]
            fault = self._faults.get((body["round"], int(node)))
            if fault is not None:
                self._before(fault, message, body["clients"])
            (one,) = super().push_messages([message])
            ids.append(one)
            self._asked[one] = body["round"], body["clients"]
            if fault is not None:
                self._after(fault, message, one)
            self.trouble.hit.clear()
        return ids

    def _before(self, fault: Fault, message: Message, clients: list[str]) -> None:
        client, node_id = clients[fault.turn % len(clients)], message.metadata.dst_node_id
        self.happened[fault.kind] += 1
        match fault.kind:
            case "client" | "full":
                self.trouble.hit[client] = fault.kind, fault.turn
            case "damage" if not self._damage(client):
                self.happened[fault.kind] -= 1
            case "clock":
                self.clock += self.rng.uniform(-MONTH, MONTH)
            case "again":
                self._answer(copy.deepcopy(message))
            case "stale":
                self._extra += self._earlier[-1:]
            case "moves":
                self._contexts[max(self._contexts) + 1] = self._contexts.pop(node_id)
            case "node" if fault.turn:
                self._contexts[-node_id] = self._contexts.pop(node_id)

    def _after(self, fault: Fault, message: Message, sent: str) -> None:
        node_id = message.metadata.dst_node_id
        match fault.kind:
            case "lost":
                self._replies.pop(sent)
            case "twice":
                self._extra.append(self._replies[sent])
            case "node":
                if fault.turn:
                    self._contexts[node_id] = self._contexts.pop(-node_id)
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                self._replies[sent] = Message(Error(code, "the node breaks down"), reply_to=message)

    def _damage(self, client: str) -> bool:
        """Damage a client's last file, if the one before it is there: with both gone a model is
        lost, and nothing else is to be expected."""
        files = sorted(ClientStore(self.state, client).folder.glob("personal-*.safetensors"))
        if len(files) < 2:
            return False
        last = max(files, key=lambda path: int(path.stem.split("-")[1]))
        data = bytearray(last.read_bytes())
        data[self.rng.randrange(len(data) // 2, len(data))] ^= 1 << self.rng.randrange(8)
        last.write_bytes(data[: -self.rng.randrange(1, 9)] if self.rng.random() < 0.5 else data)
        return True

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, and some that nobody waits for."""
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            server_round, clients = self._asked.get(reply.metadata.reply_to_message_id, (0, []))
            if server_round and not reply.has_error():
                rows, body = unpack(reply.content)
                done = [client for client in clients if client not in body["failures"]]
                for client, row in zip(done, rows, strict=True):
                    assert isinstance(row, Parts)
                    self.came[client].add((server_round, row.digest()))
                self._earlier.append(reply)
        extra, self._extra = self._extra, []
        return [*replies, *extra]


@contextmanager
def disturbed(grid: FaultyGrid) -> Iterator[None]:
    """Stores, ledgers and the clock fail as the grid says."""
    from flwr.app.message import message as messages

    trouble, seconds = grid.trouble, time.time
    now: Callable[[], datetime] = vars(messages)["now"]

    class FaultyStore(ClientStore):
        def __init__(self, root: Path, client: str, *, durable: bool = False) -> None:
            super().__init__(root, client, durable=durable)
            self.client, trouble.at_work = client, client

        def load_before(self, name: str, server_round: int) -> Parts:
            trouble.strike(self.client, "client", 0)
            had = any(found < server_round for found, _ in self._rounds_of(name))
            parts = super().load_before(name, server_round)
            if had and not parts:
                trouble.emptied.append(self.client)
            return parts

        def save_round(self, name: str, server_round: int, parts: Parts) -> None:
            trouble.strike(self.client, "client", 1)
            super().save_round(name, server_round, parts)

        def _write(self, name: str, write: Any) -> None:
            trouble.strike(self.client, "full", 1)
            super()._write(name, write)

    class FaultyLedger(Ledger):
        def _write(self, kept: Kept) -> None:
            trouble.strike(trouble.at_work, "full", 0)
            super()._write(kept)

    with ExitStack() as stack:
        for module, name, value in (
            (keeper, "ClientStore", FaultyStore),
            (account, "Ledger", FaultyLedger),
            (messages, "now", lambda: now() + timedelta(seconds=grid.clock)),
            (time, "time", lambda: seconds() + grid.clock),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield
