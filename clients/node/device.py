"""A device: one client with its own file, its own folder and, under encryption, its own key file.

What makes a node a device is ``client-id`` in its node config; else it hosts clients of a
simulation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clients.node.store import DAMAGED, ClientStore
from fedpers.errors import ClientError, ConfigError
from fedpers.files import alone_with, read_own, write_own
from fedpers.parts import Parts

log = logging.getLogger("fedpers")

NAMES = ("client-id", "data", "state", "keys", "policy", "counter")
OWNER = "owner.json"


@dataclass(frozen=True)
class Device:
    """What ``--node-config`` says of a device.

    Attributes:
        client: the client's id.
        data: its file.
        state: its folder, for all that has to survive a restart.
        keys: the folder with ``client.key``; None without encryption.
        policy: the file in which the data's owner says what may be asked; without it nothing is
            answered.
        counter: a file outside of ``state``, and of its backups, that counts what was done: a state
            that is older is refused. None: nobody notices.
    """

    client: str
    data: Path
    state: Path
    keys: Path | None = None
    policy: Path | None = None
    counter: Path | None = None

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Device | None:
        """The device that a node config describes; None for a node of a simulation.

        Raises:
            ConfigError: a part of the description is missing.
        """
        given = {name: str(node_config[name]) for name in NAMES if node_config.get(name)}
        if "client-id" not in given:
            return None
        for name in ("data", "state"):
            if name not in given:
                takes = f'--node-config \'client-id="..." {name}="..."\''
                raise ConfigError(f"{name} (node config)", None, takes)
        more = (Path(given[name]) if name in given else None for name in NAMES[3:])
        return cls(given["client-id"], Path(given["data"]), Path(given["state"]), *more)

    @property
    def described(self) -> dict[str, str | bool | int | float]:
        """The node config that describes it, see ``of``."""
        given = dict(zip(NAMES, vars(self).values(), strict=True))
        return {name: str(value) for name, value in given.items() if value is not None}

    def claim(self) -> None:
        """Take the state folder for this client, whose account and models are then in it.

        Raises:
            ClientError: as in ``claimed``, or the folder cannot be written.
        """
        path = self.state / OWNER
        try:
            with alone_with(path):
                if not self.claimed():
                    write_own(path, json.dumps({"client": self.client}))
        except OSError as error:
            raise ClientError(f"state: {self.state} cannot be written ({error.strerror})") from None

    def claimed(self) -> bool:
        """Whether the state folder is this client's already, and not nobody's.

        Raises:
            ClientError: it is another client's, or does not say whose.
        """
        path = self.state / OWNER
        try:
            text = read_own(path)
            owners = set() if text is None else {str(json.loads(text)["client"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            cure = "restore it from a backup"
            raise ClientError(f"state: {path} cannot be read ({reason}); {cure}") from None
        if text is None:  # earlier versions said so by the ledger's name alone
            owners = {unquote(file.stem) for file in self.state.glob("ledgers/*.json")}
        if owners and self.client not in owners:
            whose = f"belongs to client {min(owners)!r}, and this is client {self.client!r}"
            cure = "give each client a state folder of its own"
            raise ClientError(f"state: {self.state} {whose}; {cure}")
        return text is not None

    def base(self, digest: str) -> Parts:
        """The tensors of a model that the server has sent before; nothing if it has not, or the
        file is damaged: then it sends it again."""
        try:
            found = self._bases().load(digest)
        except DAMAGED as error:
            log.warning("the base %s is damaged (%s)", digest, error)
            return Parts()
        return found if found and found.digest() == digest else Parts()

    def keep_base(self, base: Parts) -> None:
        """Keep what the server sent."""
        self._bases().save(base.digest(), base)

    def _bases(self) -> ClientStore:
        return ClientStore(self.state, "base", durable=True)
