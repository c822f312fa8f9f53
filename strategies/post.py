"""The messages of a run: what every one says, and who receives what."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpers.channels.wire import Answers, Question
from fedpers.models.base_state import made_from_public_data, read_base
from fedpers.parts import Parts
from fedpers.permit import read_permit
from fedpers.records import Row, pack, pack_known
from strategies.base import PersonalizedStrategy
from strategies.exchange import collect, group_of, send_and_receive
from strategies.roster import Roster, natural_order

log = logging.getLogger("fedpers")

REPLY = 64 * 2**20  # bytes of updates in one reply, at most; but
FEWEST = 64  # clients a message at least, where a node has as many


class Post:
    """Writes and sends messages; to a channel it is the ``Wire``.

    Args:
        method: whose run this is.
        roster: who hosts whom.

    Attributes:
        grid: to send by; given when the run starts.
        run_folder: of the run's files.
        base: of the model, what is made of public data, which devices do not have.
    """

    def __init__(self, method: PersonalizedStrategy, roster: Roster) -> None:
        self.method, self.roster, self.config = method, roster, method.config
        self.grid: Grid | None = None
        self.run_folder = ""
        self.base = read_base(method.model) if made_from_public_data(self.config) else None
        self._base_digest = self.base.digest() if self.base else None
        permit = self.config.permit
        self._permit = {} if permit is None else {"permit": asdict(read_permit(Path(permit)))}

    def header(self, asked: Sequence[str] = ()) -> dict[str, Any]:
        """What every message says about the run.

        Args:
            asked: the clients that the messages are for.
        """
        terms = self.method.channel.header(asked)
        return {
            "settings": self.config.to_json(),
            "algorithm": self.method.client_side(),
            "server_params": self.method.param_names(),
            "run_folder": self.run_folder,
            "base": self._base_digest,
            "schema": self.method.schema.to_json(),
            **({"channel": terms} if terms else {}),
            **self._permit,
        }

    def messages(
        self,
        message_type: str,
        server_round: int,
        received: Mapping[str, Row],
        **body: Any,
    ) -> tuple[list[Message], dict[str, list[str]]]:
        """Messages for the nodes that host any client in ``received``, with what each client is to
        receive: one a node, or as many as keep replies small; and the clients by message's group.

        Parts that several clients of a message receive are sent once.
        """
        hosts, channel = self.roster.by_node(received), self.method.channel
        training = message_type in ("train", "train.pool")
        whole = not training or not channel.splits
        asked = list(hosts.items()) if whole else self._split(hosts)
        groups = {f"{server_round}/{k}": some for k, (_, some) in enumerate(asked)}
        everyone = [client for _, some in asked for client in some]
        weights = channel.foresee(everyone) if training else {}
        made, header, last = list[Message](), self.header(everyone), list[Row]()
        for group, (node, some) in zip(groups, asked, strict=True):
            rows, row_of = _once([received[client] for client in some])
            said = {client: self.method.says(server_round, client) for client in some}
            head = {
                **header,
                "round": server_round,
                "clients": some,
                "rows": dict(zip(some, row_of, strict=True)),
                "said": {client: told for client, told in said.items() if told},
            }
            if weights:  # each node is told its own clients'
                head["weights"] = {client: weights[client] for client in some}
            content = self._content(rows, {**head, **body})
            if made and len(rows) == len(last) and all(map(operator.is_, rows, last)):
                content["parts"] = made[-1].content["parts"]  # the same bytes, in memory once
            last = rows
            made.append(
                Message(content, dst_node_id=node, message_type=message_type, group_id=group)
            )
        return made, groups

    def _split(self, hosts: Mapping[int, list[str]]) -> list[tuple[int, list[str]]]:
        """Each message's node and clients, for replies of ``REPLY`` bytes at most.

        In the roster's order, and all nodes in as many pieces: blocks of the mean are then complete
        early.
        """
        layouts = self.method.layouts.values()
        update = sum(layout.size * layout.dtype.itemsize for layout in layouts)
        most = max(FEWEST, REPLY // max(update, 1))
        pieces = max((ceil(len(hosted) / most) for hosted in hosts.values()), default=1)
        if pieces == 1:
            return list(hosts.items())
        split = []
        for node, hosted in hosts.items():
            in_order = sorted(hosted, key=natural_order)
            count = max(FEWEST, ceil(len(hosted) / pieces))
            split += [(node, in_order[k : k + count]) for k in range(0, len(hosted), count)]
        return split

    def each_node(
        self, message_type: str, server_round: int, clients: Sequence[str], **body: Any
    ) -> Answers:
        """Ask the nodes that host any of ``clients`` about them, without parts."""
        asked, header = self.roster.by_node(clients), self.header()
        messages = []
        for node, hosted in asked.items():
            head = {**header, "round": server_round, "clients": hosted, **body}
            content = self._content([], head)
            messages.append(Message(content, dst_node_id=node, message_type=message_type))
        return collect(self.send(messages), asked)

    def ask_clients(
        self,
        kind: str,
        server_round: int,
        asked: Mapping[str, Mapping[str, Any]],
        parts: Mapping[str, Row] | None = None,
    ) -> dict[str, Mapping[str, Any]]:
        """A message of the method's own, see ``strategies.base.Asks``."""
        found: dict[str, Mapping[str, Any]] = {}
        received = {client: (parts or {}).get(client, Parts()) for client in asked}
        body = {"kind": kind, "asks": dict(asked)}
        messages, groups = self.messages("query.method", server_round, received, **body)
        answers = collect(self.send(messages), groups, group_of)
        for group, answered in answers.bodies.items():
            given = answered.get("answers")
            for client in groups[group]:
                if isinstance(given, Mapping) and isinstance(given.get(client), Mapping):
                    found[client] = given[client]
        for client, reason in answers.failures.items():
            log.warning("%s: client %s: %s", kind, client, reason)
        return found

    # -- what a channel asks ---------------------------------------------------------------------

    @property
    def run(self) -> str:
        """The name of the run, that of its folder."""
        return Path(self.run_folder).name

    @property
    def nodes(self) -> Sequence[int]:
        """The nodes that are there."""
        return list(self.roster.hosts)

    def by_node(self, clients: Sequence[str]) -> Mapping[int, list[str]]:
        """The nodes that host any of ``clients``, each with those that it hosts."""
        return self.roster.by_node(clients)

    def ask(self, kind: str, questions: Mapping[int, Question]) -> Answers:
        """A message of the channel's own for each node; see ``fedpers.channels.wire.Wire``."""
        asked = [client for question in questions.values() for client in question.clients]
        header, messages, about = self.header(asked), [], {}
        for node, (clients, rows, body) in questions.items():
            head = {**header, **body, "kind": kind, "clients": list(clients)}
            content = self._content(rows, head)
            messages.append(Message(content, dst_node_id=node, message_type="query.channel"))
            about[node] = list(clients) or [str(node)]
        return collect(self.send(messages), about)

    def _content(self, rows: Sequence[Row], head: Mapping[str, Any]) -> RecordDict:
        content = pack(rows, head)
        pack_known(content, self.method.known)
        return content

    def send(self, messages: Sequence[Message]) -> Any:
        """The replies, as they come."""
        assert self.grid is not None
        return send_and_receive(self.grid, messages, self.config.round_timeout)


def _once(received: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """The different rows in ``received``, and which of them each one is."""
    rows, place, row_of = list[Row](), dict[int, int](), list[int]()
    for row in received:
        if id(row) not in place:
            place[id(row)] = len(rows)
            rows.append(row)
        row_of.append(place[id(row)])
    return rows, row_of
