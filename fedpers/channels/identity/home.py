"""Where the identities of a node's clients lie, and the registry that each has pinned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.node import Kept
from fedpers.errors import ConfigError
from fedpers.files import alone_with, read_own, write_own

IDENTITY, REGISTRY = "identity.json", "registry.json"

Enrol = Callable[[str, Path], Identity]
"""Makes a client's keys in a folder, and what its channel has to remember from then on."""


class Home:
    """The clients of a node, each with keys of its own.

    In a simulation a client's keys are made for the run, in its own store, and all clients pin the
    registry that they are shown first. On a device they are its owner's: a folder with
    ``identity.json`` and ``registry.json``, and another registry is refused.

    Args:
        enrol: makes a client's keys where there are none.
        keys: the folder of a device's owner; None in a simulation.
    """

    def __init__(self, enrol: Enrol, keys: Path | None) -> None:
        self.enrol, self.keys = enrol, keys
        self._identities: dict[Path, Identity] = {}

    def folder(self, kept: Kept, client: str) -> Path:
        """A client's own."""
        return self.keys or kept.folder(client)

    def identity(self, kept: Kept, client: str) -> Identity:
        """A client's keys; in a simulation made when they are asked for first.

        Raises:
            ConfigError: a device's are not there, or are another client's.
        """
        path = self.folder(kept, client) / IDENTITY
        if path not in self._identities:
            if self.keys is None:
                with alone_with(path):
                    if not path.exists():
                        self.enrol(client, path.parent)
            found = Identity.load(path)
            if found.client != client:
                takes, cure = f"the identity of client {client}", "give each client its own keys"
                raise ConfigError("identity", f"that of {found.client}", takes, cure)
            self._identities[path] = found
        return self._identities[path]

    def registry(self, kept: Kept, client: str, offered: str | None) -> Registry:
        """The registry that is pinned: with the owner's keys, or in a simulation once for all.

        Args:
            offered: what the server shows as the registry; None where it takes it to be known.

        Raises:
            Refused: it is another; a client whose key has changed is named.
        """
        path = (self.keys or kept.folder(client).parent) / REGISTRY
        return _pinned(path, offered, self.keys is None)


def new_identity(client: str, folder: Path) -> Identity:
    """Make a client's keys.

    Raises:
        ConfigError: it has keys.
    """
    made = Identity.new(client)
    made.save(folder / IDENTITY)
    return made


def deal_identities(enrol: Enrol, server: Path, nodes: Mapping[str, Path]) -> None:
    """Make each client's keys in a folder of its own, and put the registry of all public halves
    beside them and into the server's."""
    for folder in (server, *nodes.values()):
        folder.mkdir(mode=0o700, exist_ok=True)
    registry = Registry([enrol(client, folder).public for client, folder in nodes.items()])
    for folder in (server, *nodes.values()):
        write_own(folder / REGISTRY, registry.to_json())


def registry_in(folder: Path) -> Registry:
    """The deployment's registry.

    Raises:
        ConfigError: it is not there, or is none.
    """
    try:
        return Registry.from_json((folder / REGISTRY).read_text(encoding="utf-8"))
    except OSError:
        takes = f"a folder with {REGISTRY}"
        raise ConfigError("encryption.keys", str(folder), takes) from None


def identified(keys: Path | None) -> str:
    """What there is to say of the keys that a device has.

    Raises:
        ConfigError: there are none, or they cannot be used.
    """
    if keys is None:
        raise ConfigError("keys", None, f"the folder with {IDENTITY} and {REGISTRY}", "--keys DIR")
    own, text = Identity.load(keys / IDENTITY), read_own(keys / REGISTRY)
    if text is None:
        raise ConfigError("keys", str(keys), f"a folder with {REGISTRY}, as your deployment has it")
    registry = Registry.from_json(text)
    try:
        registry.check(own.public)
    except Refused as error:
        raise ConfigError("keys", str(error), "the registry that has this client's key") from None
    return f"identity: client {own.client}, one of {len(registry.publics)} in the registry"


@lru_cache(4)
def _pinned(path: Path, offered: str | None, first: bool) -> Registry:
    """The registry that is pinned at ``path``, if the one offered is the same.

    Args:
        first: whether the first one that is offered is pinned.

    Raises:
        Refused: it is another; a client whose key has changed is named.
    """
    with alone_with(path):
        text = read_own(path)
        if text is None and first and offered is not None:
            registry = Registry.from_json(offered)
            write_own(path, offered)
            return registry
    if text is None:
        raise Refused(f"registry: {path} is not there, takes the one of the deployment")
    pinned = Registry.from_json(text)
    if offered is not None and offered != text:
        shown = Registry.from_json(offered)
        for public in shown.publics.values():
            pinned.check(public)
        if missing := pinned.publics.keys() - shown.publics.keys():
            raise Refused(f"registry: got one without {min(missing)}, takes the one pinned")
    return pinned
