"""What a channel's server half is given to talk with nodes, and how their answers are sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fedpers.records import Row


@dataclass
class Answers:
    """What the nodes answered to one batch of messages.

    Attributes:
        rows: the parts that came, by client; without those that were added up as they came.
        bodies: the JSON body of each answer, by node or, where a node has several, by group.
        failures: for each client without a result, the reason.
        nbytes: bytes of the parts received.
        encrypt, decrypt: the longest time that any node encrypted and decrypted.
        complete: when the last answer had come, by ``time.perf_counter``.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    bodies: dict[Any, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    encrypt: float = 0.0
    decrypt: float = 0.0
    complete: float = 0.0

    def merge(self, other: Answers) -> None:
        """Take up what another node answered."""
        self.rows |= other.rows
        self.bodies |= other.bodies
        self.failures |= other.failures
        self.nbytes += other.nbytes
        self.encrypt = max(self.encrypt, other.encrypt)
        self.decrypt = max(self.decrypt, other.decrypt)

    def add(self, other: Answers) -> None:
        """Add the bytes and times of a second batch of messages of the same round."""
        self.nbytes += other.nbytes
        self.encrypt += other.encrypt
        self.decrypt += other.decrypt

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Note that clients failed after all, and drop what they sent."""
        self.failures |= reasons
        for client in reasons:
            self.rows.pop(client, None)


class Question(NamedTuple):
    """What one node is asked: about which of its clients, with what parts, and what else."""

    clients: Sequence[str]
    rows: Sequence[Row]
    body: Mapping[str, Any]


class Wire(Protocol):
    """The nodes of a run, for whoever has something to ask them."""

    @property
    def run(self) -> str:
        """The name of the run."""

    @property
    def nodes(self) -> Sequence[int]:
        """The nodes that are there."""

    def by_node(self, clients: Sequence[str]) -> Mapping[int, list[str]]:
        """The nodes that host any of ``clients``, each with those that it hosts."""

    def ask(self, kind: str, questions: Mapping[int, Question]) -> Answers:
        """One message a node; the answers by client, or by the node's number where a question is
        about no client. A node that does not answer costs its clients alone."""
