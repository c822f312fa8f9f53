"""The errors a user can cause, each one line: what, got what, takes what, what to do."""

from __future__ import annotations

from typing import Any


class FedpersError(Exception):
    """A mistake that the user can mend. The command line prints it as one line, exit code 2."""


class ConfigError(FedpersError):
    """A setting that does not exist, has the wrong type, or an impossible value.

    >>> str(ConfigError("data.clients", 0, "an integer >= 1"))
    'data.clients: got 0, takes an integer >= 1'
    """

    def __init__(self, key: str, got: Any, takes: str, cure: str = "") -> None:
        self.key = key
        text = f"{key}: got {got!r}, takes {takes}"
        super().__init__(f"{text}; {cure}" if cure else text)


class DataError(FedpersError):
    """Data that cannot be read, or that cannot be split as asked."""


class ClientError(FedpersError):
    """One client's failure: it costs that client the round and nobody else."""


class RunError(FedpersError):
    """A run that cannot go on, as when no client is left. Exit code 1."""


def line_of(said: object) -> str:
    """What an error says, or a text, in one line."""
    return " ".join(str(said).split())
