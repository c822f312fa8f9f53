"""A simulation whose messages somebody reads, and changes on their way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedpers.channels.masked.envelope import Envelope
from fedpers.records import Row, pack, unpack
from simulations.backends.serial import SerialGrid


class Said(NamedTuple):
    """One message and its answer: what the server asked of ``clients``, the rows that came, and
    what was told beside them."""

    kind: str
    body: dict[str, Any]
    answer: list[Row]
    told: dict[str, Any]

    @property
    def clients(self) -> list[str]:
        """Whom it was about."""
        return list(self.body.get("clients", ()))


Meddle = Callable[[Said], "list[Row] | None"]
"""The rows that come instead; None where nothing comes."""


class MeddlingGrid(SerialGrid):
    """Nodes between which and the server stands somebody.

    Attributes:
        meddle: what becomes of an answer with rows.
        transcript: all that was said, as the server has it.
    """

    meddle: Meddle = staticmethod(lambda said: said.answer)
    transcript: list[Said]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered, and the answer changed."""
        ids: list[str] = []
        for message in messages:
            _, body = unpack(message.content)
            (one,) = super().push_messages([message])
            ids.append(one)
            reply = self._replies[one]
            if reply.has_error():
                continue
            rows, answer = unpack(reply.content)
            kind = str(body.get("kind", message.metadata.message_type))
            came = self.meddle(Said(kind, body, rows, answer)) if rows else rows
            if came is None:
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                self._replies[one] = Message(Error(code, "lost on the way"), reply_to=message)
            elif rows:
                self.transcript.append(Said(kind, body, came, answer))
                self._replies[one] = Message(pack(came, answer), reply_to=message)
        return ids


def data_of(row: Row) -> bytes:
    """What is in an envelope."""
    assert isinstance(row, Envelope)
    return row.data
