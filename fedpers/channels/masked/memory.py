"""What a client has served, on its disk before anything leaves it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.masked.session import Session
from fedpers.errors import ConfigError
from fedpers.files import alone_with, read_own, write_own


@dataclass(frozen=True)
class Served:
    """The last tag, and how many tags each round of the last run took.

    Args:
        tag: 0 at first.
        session: digest of its terms, without contributions until the vector is masked.
        survivors: digest of the set that was signed; empty before.
        run: id of the run.
        attempts: round -> tags.
    """

    tag: int = 0
    session: str = ""
    survivors: str = ""
    run: str = ""
    attempts: dict[str, int] = field(default_factory=dict)


class Memory:
    """The file of one client.

    A tag makes pads: two vectors under one of them give their difference away, as two sets of
    survivors do. So each step is written, and on the disk, before its message exists. A client
    whose file is gone does not know what it served and is silent: enrol it anew.

    Args:
        path: of the file, which ``create`` made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Memory:
        """The memory of a client that is enrolled now.

        Raises:
            ConfigError: there is one.
        """
        if path.exists():
            raise ConfigError("memory", str(path), "a new path", "what was served is not forgotten")
        write_own(path, json.dumps(asdict(Served())))
        return cls(path)

    def read(self) -> Served:
        """What was served.

        Raises:
            Refused: the file is gone or is not what was written.
        """
        try:
            text = read_own(self.path)
            if text is None:
                raise Refused("memory: it is gone, so that a pad could be used twice; enrol anew")
            return Served(**json.loads(text))
        except (OSError, TypeError, ValueError):
            raise Refused("memory: it cannot be read, so a pad could be used twice") from None

    def join(self, session: Session) -> None:
        """A contribution is about to leave."""
        with self._step() as served:
            self._write(self._next(served, session))

    def upload(self, session: Session) -> None:
        """A masked vector is about to leave."""
        with self._step() as served:
            if not session.sparse:
                served = self._next(served, session)
            self._same(served, session, session.call)
            self._write(replace(served, session=session.digest.hex()))

    def sign(self, session: Session, survivors: bytes) -> None:
        """A signature under a set of survivors is about to leave; for the same set, again."""
        with self._step() as served:
            self._same(served, session, session.digest)
            if served.survivors:
                self._one_set(served, survivors)
            self._write(replace(served, survivors=survivors.hex()))

    def reveal(self, session: Session, survivors: bytes) -> None:
        """Shares for a set of survivors are about to leave."""
        with self._step() as served:
            self._same(served, session, session.digest)
            self._one_set(served, survivors)

    def _next(self, served: Served, session: Session) -> Served:
        terms, most = session.terms, session.policy.attempts
        if terms.tag <= served.tag:
            raise Refused(f"tag: got {terms.tag}, takes one above {served.tag}, which was served")
        attempts = dict(served.attempts) if terms.run == served.run else {}
        count = attempts.get(str(terms.round), 0) + 1
        if count > most:
            raise Refused(f"round {terms.round}: got tag number {count}, takes {most} a round")
        attempts[str(terms.round)] = count
        return Served(terms.tag, session.call.hex(), "", terms.run, attempts)

    def _same(self, served: Served, session: Session, digest: bytes) -> None:
        if (served.tag, served.session) != (session.terms.tag, digest.hex()):
            got = (
                f"tag {session.terms.tag}: got terms, or a step, that this client has not agreed to"
            )
            raise Refused(f"{got}, takes those of tag {served.tag} in turn")

    def _one_set(self, served: Served, survivors: bytes) -> None:
        if served.survivors != survivors.hex():
            raise Refused(f"tag {served.tag}: got a second set of survivors, takes the one signed")

    @contextmanager
    def _step(self) -> Iterator[Served]:
        with alone_with(self.path):
            yield self.read()

    def _write(self, served: Served) -> None:
        write_own(self.path, json.dumps(asdict(served)))
