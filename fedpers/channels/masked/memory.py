"""What clients have served, in a file before anything leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.masked.session import Session
from fedpers.errors import ConfigError
from fedpers.files import alone_with, read_own, write_own


@dataclass(frozen=True)
class Served:
    """One client's last tag, and what it has done under it.

    Args:
        tag: 0 at first.
        session: digest of its terms, without contributions until the vector is masked.
        upload: the commitment by which a set of survivors names the upload; empty before.
        survivors: digest of the set that was signed; empty before.
        run: id of the run.
        round: the last one of it that was served.
        attempts: round -> tags, where it took more than one.
    """

    tag: int = 0
    session: str = ""
    upload: str = ""
    survivors: str = ""
    run: str = ""
    round: int = -1
    attempts: dict[str, int] = field(default_factory=dict)


Step = Callable[[Served], Served]
"""What a client is about to do, from what it has done; raises ``Refused`` where it may not."""


class Memory:
    """The file of the clients of a folder: a device's one, or all of a simulation.

    A tag makes pads: two vectors under one of them give their difference away, as two sets of
    survivors do. So each step is written before its message exists. A client that the file does not
    know cannot tell what it served and is silent: enrol it anew.

    Args:
        path: of the file.
        durable: whether a step is on the disk when it is taken. Else it is with the operating
            system, which a process that is killed does not take along, and a machine that loses
            power does: for a simulation, where nobody is left then whom it could deceive.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path, self.durable = path, durable

    def enrol(self, clients: Iterable[str]) -> None:
        """Begin with clients that have served nothing.

        Raises:
            ConfigError: one is there.
        """
        with alone_with(self.path):
            known = self.read() if self.path.exists() else {}
            for client in clients:
                if client in known:
                    takes = "a client without one: what was served is not forgotten"
                    raise ConfigError("memory", f"{self.path} of {client}", takes)
                known[client] = Served()
            self._write(known)

    def read(self) -> dict[str, Served]:
        """What was served, by client.

        Raises:
            Refused: the file is gone or is not what was written.
        """
        try:
            text = read_own(self.path)
            if text is None:
                raise Refused("memory: it is gone, so that a pad could be used twice; enrol anew")
            return {client: Served(**row) for client, row in json.loads(text).items()}
        except (OSError, AttributeError, TypeError, ValueError):
            raise Refused("memory: it cannot be read, so a pad could be used twice") from None

    def of(self, client: str) -> Served:
        """What one client has served.

        Raises:
            Refused: nobody knows.
        """
        return _row(self.read(), client)

    def take(self, steps: Mapping[str, Step]) -> dict[str, Refused]:
        """Take a step of each client, all in one writing; why some may not, who have taken none.

        Raises:
            Refused: nobody knows what was served.
        """
        refused: dict[str, Refused] = {}
        with alone_with(self.path):
            known = self.read()
            before = dict(known)
            for client, step in steps.items():
                try:
                    known[client] = step(_row(known, client))
                except Refused as error:
                    refused[client] = error
            if known != before:
                self._write(known)
        return refused

    def _write(self, known: Mapping[str, Served]) -> None:
        rows = {client: vars(served) for client, served in known.items()}
        write_own(self.path, json.dumps(rows), durable=self.durable)


def joined(session: Session) -> Step:
    """A contribution is about to leave."""
    return lambda served: _next(served, session)


def uploaded(session: Session, commitment: bytes) -> Step:
    """A masked vector is about to leave."""

    def step(served: Served) -> Served:
        served = served if session.sparse else _next(served, session)
        _same(served, session, session.call)
        return replace(served, session=session.digest.hex(), upload=commitment.hex())

    return step


def signed(session: Session, survivors: bytes, commitment: bytes) -> Step:
    """A signature under a set of survivors is about to leave; for the same set, again.

    Args:
        commitment: by which the set names the client's upload.
    """

    def step(served: Served) -> Served:
        _same(served, session, session.digest)
        if served.upload != commitment.hex():
            got = f"tag {served.tag}: got a set with another upload of this client"
            raise Refused(f"{got}, takes the one that it sent last")
        if served.survivors:
            _one_set(served, survivors)
        return replace(served, survivors=survivors.hex())

    return step


def revealed(session: Session, survivors: bytes) -> Step:
    """Shares for a set of survivors are about to leave."""

    def step(served: Served) -> Served:
        _same(served, session, session.digest)
        _one_set(served, survivors)
        return served

    return step


def _row(known: Mapping[str, Served], client: str) -> Served:
    if client not in known:
        raise Refused(f"memory: it does not know {client}, so a pad could be used twice")
    return known[client]


def _next(served: Served, session: Session) -> Served:
    terms, most = session.terms, session.policy.attempts
    if terms.tag <= served.tag:
        raise Refused(f"tag: got {terms.tag}, takes one above {served.tag}, which was served")
    attempts, last = (served.attempts, served.round) if terms.run == served.run else ({}, -1)
    # A round that was passed over counts as served once: nobody goes back to it.
    count = attempts.get(str(terms.round), int(terms.round <= last)) + 1
    if count > most:
        raise Refused(f"round {terms.round}: got tag number {count}, takes {most} a round")
    if count > 1:
        attempts = {**attempts, str(terms.round): count}
    last = max(last, terms.round)
    return Served(terms.tag, session.call.hex(), "", "", terms.run, last, attempts)


def _same(served: Served, session: Session, digest: bytes) -> None:
    if (served.tag, served.session) != (session.terms.tag, digest.hex()):
        got = f"tag {session.terms.tag}: got terms, or a step, that this client has not agreed to"
        raise Refused(f"{got}, takes those of tag {served.tag} in turn")


def _one_set(served: Served, survivors: bytes) -> None:
    if served.survivors != survivors.hex():
        raise Refused(f"tag {served.tag}: got a second set of survivors, takes the one signed")
