"""The nodes' half of a channel: what an update passes through before it leaves its client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from fedpers.parts import Layout, Parts
from fedpers.records import Row

Sends = tuple[Parts, dict[str, Any]]
"""What a client uploads, and its report."""


class Kept(Protocol):
    """What a node keeps, for its half of a channel: of what has not been sent yet."""

    def hold(self, client: str, server_round: int, update: Parts) -> None:
        """Keep an update."""

    def held(self, client: str, server_round: int) -> Parts:
        """The update kept in a round.

        Raises:
            ClientError: there is none.
        """

    def folder(self, client: str) -> Path:
        """The client's own folder of this run, which may not be there yet."""


class Leaving(NamedTuple):
    """An update that is about to leave its client.

    Attributes:
        update: with what is derived of it.
        report: of the client, whole.
        body: of the message that is answered: ``channel``, as ``Channel.header`` says, and
            ``weights`` of its clients, where they are known.
        sent: what the client received.
    """

    client: str
    server_round: int
    update: Parts
    report: Mapping[str, Any]
    body: Mapping[str, Any]
    sent: Parts = Parts({})


class ClientSide(NamedTuple):
    """What a channel has to know of the client side of a method, see ``LocalAlgorithm``.

    Attributes:
        opens: the parts of which the server may have the mean.
        weights_of: what it makes of cosines of a client's compared slot with the others'.
    """

    opens: tuple[str, ...]
    weights_of: Callable[[Sequence[float]], list[float]]


class NodeChannel(ABC):
    """The nodes' half.

    Class attributes:
        counts: whether clients say how many examples they have; else each says 1.
        opens: the ``kinds`` whose answer has in the clear what the server sent.
        adds_noise: whether ``leave`` adds a client's share of the noise by itself, in integers,
            where privacy is by client.

    Attributes:
        kinds: the channel's own kinds of message: name -> what answers it, see ``Handler``.
        seconds: spent since ``take_seconds``, by what for.
    """

    counts: ClassVar[bool] = True
    opens: tuple[str, ...] = ()
    adds_noise: ClassVar[bool] = False

    def __init__(self) -> None:
        self.kinds: dict[str, Handler] = {}
        self.seconds = {"encrypt": 0.0, "decrypt": 0.0}

    def introduction(
        self, kept: Kept, clients: Sequence[str], terms: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the server is told of this half when a run begins; nothing, where nothing is.

        Args:
            clients: that the node hosts and that train.
        """
        return {}

    def prepare(self, update: Parts, sent: Parts) -> Parts:
        """An update as soon as it is made, before anything is derived of it or it is kept.

        Args:
            sent: what the client received.
        """
        return update

    def stands_in(self, sent: Parts) -> Sends | None:
        """What a client sends whose training failed; None if it sends nothing."""
        return None

    @abstractmethod
    def arrive(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> list[Parts]:
        """What came, in the clear.

        Args:
            body: of the message, whose ``rows`` says of each client which one it receives.

        Raises:
            ClientError: one cannot be opened, or is not to be.
        """

    @abstractmethod
    def leave(self, kept: Kept, leaving: Leaving) -> Row | None:
        """An update as it leaves; None where it is kept until its weight is known.

        Raises:
            ClientError: it cannot be sent.
        """

    def disclosed(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the server is told of one client's report; all of it, unless it leaves within the
        update."""
        return report

    @abstractmethod
    def as_declared(
        self, row: Row, declared: Mapping[str, Layout], terms: Mapping[str, Any]
    ) -> Row:
        """A row as it may leave: of the parts, names and shapes that the server knows already.

        Raises:
            ClientError: it is something else.
        """

    def derives(self, terms: Mapping[str, Any], sent: Sequence[str]) -> list[str]:
        """The derived parts that the client has to make of its update."""
        return []

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent since the last look."""
        taken = dict(self.seconds)
        self.seconds = dict.fromkeys(taken, 0.0)
        return taken


Handler = Callable[[Kept, Sequence[Row], Mapping[str, Any]], tuple[list[Row], dict[str, Any]]]
"""Answers a message of the channel's own: rows and body in, rows and body out. ``failures`` in a
body are errors, by client; the node says what may be told of them."""
