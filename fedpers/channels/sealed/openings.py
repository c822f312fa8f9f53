"""What a client has opened for a server, on its disk before the answer leaves it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.channels.sealed.statement import digest_of, terms_to_bytes
from fedpers.files import alone_with, read_own, write_own

AGAIN = 2  # comparisons a round, as a server that was started anew repeats one


@dataclass
class Opened:
    """Of the last round in which anything was opened.

    Args:
        agreed: digest of the sum that this client has agreed to have opened.
        opened: whether it has opened that sum itself.
        compared: how often it has compared clients.
    """

    round: int = 0
    agreed: str = ""
    opened: bool = False
    compared: int = 0


class Openings:
    """The file of one client in one run.

    Two sums of a round that differ by one client give its update away. So a client agrees to one
    sum a round, and two thirds of the clients in a sum have to agree before any of them opens it:
    of the sums opened in a round each has twice as many clients of its own as it can share with
    others, and no combination of them is a single client's update.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def agree(self, server_round: int, sum_digest: str) -> None:
        """A signature under a sum is about to leave; for the same one, again.

        Raises:
            Refused: of an earlier round, or a second sum.
        """
        with self._of(server_round) as known:
            if known.agreed not in ("", sum_digest):
                raise Refused(f"round {server_round}: got a second sum to open, takes one")
            known.agreed = sum_digest

    def open(self, server_round: int, sum_digest: str) -> None:
        """A sum is about to be opened.

        Raises:
            Refused: this client has not agreed to it, or has opened it.
        """
        with self._of(server_round) as known:
            if known.agreed != sum_digest:
                raise Refused(f"round {server_round}: got a sum that was not agreed to")
            if known.opened:
                raise Refused(f"round {server_round}: got a sum that was opened already")
            known.opened = True

    def compare(self, server_round: int) -> None:
        """Clients are about to be compared.

        Raises:
            Refused: for a third time in this round, or in an earlier one.
        """
        with self._of(server_round) as known:
            if known.compared >= AGAIN:
                raise Refused(f"round {server_round}: got a third comparison, takes {AGAIN}")
            known.compared += 1

    @contextmanager
    def _of(self, server_round: int) -> Iterator[Opened]:
        with alone_with(self.path):
            try:
                text = read_own(self.path)
                known = Opened() if text is None else Opened(**json.loads(text))
            except (OSError, TypeError, ValueError):
                raise Refused("openings: what was opened cannot be read") from None
            if server_round < known.round:
                raise Refused(f"round: got {server_round}, takes {known.round} or later")
            if server_round > known.round:
                known = Opened(server_round)
            yield known
            write_own(self.path, json.dumps(asdict(known)))


class Mean(NamedTuple):
    """A mean that is to be opened.

    Attributes:
        round: of the run, in which its terms left their clients.
        parts: the names of what is inside, and
        clients: of those whose updates it is the mean of, in order.
        sum: digest of its terms.
    """

    round: int
    parts: tuple[str, ...]
    clients: tuple[str, ...]
    sum: str

    @classmethod
    def of(cls, row: SealedParts, server_round: int) -> Mean:
        """That of a row.

        Raises:
            Refused: not all of its parts are of the same clients.
        """
        sets = {tuple(sorted(term.statement.client for term in terms)) for terms in row.terms}
        if len(sets) != 1:
            raise Refused("sealed: got parts of other clients than their neighbours'")
        digest = digest_of(encode(*(terms_to_bytes(terms) for terms in row.terms))).hex()
        return cls(server_round, tuple(row.layouts), sets.pop(), digest)

    @property
    def kept(self) -> str:
        """The name of the file of what was opened of these parts."""
        return f"opened-{digest_of(encode(*self.parts)).hex()[:16]}.json"

    def agreement(self, run: str) -> bytes:
        """What clients sign that agree to have it opened."""
        parts, clients = encode(*self.parts), encode(*self.clients)
        return encode("fedpers sealed opening", run, self.round, parts, clients, self.sum)


def quorum(clients: int) -> int:
    """How many of a set have to agree."""
    return ceil(2 * clients / 3)
