"""What a node says of a failure, and what it keeps to itself.

An error's text may hold what a client's data or files hold, so that under privacy or encryption,
and on a device, one word leaves and the text stays in a log of the node's own.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clients.node.device import Device
from fedpers.config import Config
from fedpers.errors import ConfigError, DataError, FedpersError, line_of
from fedpers.failures import DATA, FAILED, LOG, SPENT
from fedpers.privacy import BudgetSpent

LARGEST = 2**22  # bytes, after which the log is put aside and begun anew

log = logging.getLogger("fedpers")


class Withheld(FedpersError):
    """An error that comes of a client's own data or files; the one it was raised from says more.

    Attributes:
        word: all that may leave of it, one of ``fedpers.failures.WORDS``.
    """

    def __init__(self, word: str, error: Exception) -> None:
        self.word = word
        super().__init__(_line(error))


@contextmanager
def withheld(word: str) -> Iterator[None]:
    """Whatever is raised in the block comes of a client's own data or files."""
    try:
        yield
    except Exception as error:
        raise Withheld(word, error) from error


@dataclass(frozen=True)
class Reasons:
    """Why things failed on a node.

    Attributes:
        leave: whether they may be told in full.
        home: the node's folder, where they are noted if not; None if that is not known.
    """

    leave: bool
    home: Path | None

    @classmethod
    def at(cls, config: Config, device: Device | None, stores: Path) -> Reasons:
        """Those of a node.

        Args:
            stores: the folder of the clients' stores.
        """
        closed = config.confidential or device is not None
        return cls(not closed, device.state if device is not None else stores)

    def of(self, what: str, error: Exception) -> str:
        """Why a client's answer is missing, as the server is told.

        Args:
            what: what failed, for the note.
        """
        if self.leave:
            log.debug("%s failed", what, exc_info=error)
            return f"{type(error).__name__}: {line_of(error)}"
        self.note(what, error)
        return SPENT if isinstance(error, BudgetSpent) else FAILED

    def of_refusal(self, error: Exception) -> str:
        """Why the node cannot run the method as configured, as the server is told.

        What is wrong with the settings is known to whoever sent them, and leaves in full.
        """
        if isinstance(error, ConfigError) or self.leave:
            return _line(error)
        self.note("this node cannot run the method", error)
        if isinstance(error, Withheld):
            return error.word
        return DATA if isinstance(error, DataError) else FAILED

    def note(self, what: str, error: Exception) -> None:
        """Write down why something failed, readable by the node's user only."""
        if self.home is None:
            log.error("%s", what, exc_info=error)
            return
        now, path = datetime.now(UTC).isoformat(timespec="seconds"), self.home / LOG
        text = f"{now} {what}: {''.join(traceback.format_exception(error))}\n"
        with suppress(OSError):  # a full disk must not cost more than the reason
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.exists() and path.stat().st_size > LARGEST:
                os.replace(path, path.with_name(f"{LOG}.1"))
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8", errors="replace") as file:
                file.write(text)


def _line(error: Exception) -> str:
    line = line_of(error)
    return line if isinstance(error, FedpersError) else f"{type(error).__name__}: {line}"
