"""Which key and which identities a run goes by, when its nodes are there."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedpers.channels.identity.home import REGISTRY, registry_in
from fedpers.channels.identity.registry import Registry
from fedpers.channels.sealed.cipher import ServerCipher
from fedpers.channels.sealed.keys import NEXT_CONTEXT, SERVER_FILE, load_server, server_from
from fedpers.channels.settings import Encryption
from fedpers.errors import ConfigError, FedpersError

Said = Iterable[Mapping[str, Any]]
"""What nodes said of their half of the channel."""


def cipher_for(settings: Encryption, said: Said) -> ServerCipher:
    """That of our context, or of the key that nodes of a simulation made.

    Raises:
        ConfigError: there is none.
    """
    if settings.keys is not None:
        return load_server(Path(settings.keys) / SERVER_FILE)
    context = next((str(k["context"]) for k in said if k.get("context")), None)
    if context is None:
        cure = "make keys: fedpers keys new --out DIR"
        raise ConfigError("encryption.keys", None, f"a folder with {SERVER_FILE}", cure)
    return server_from(base64.b64decode(context, validate=True))


def next_cipher(settings: Encryption, clients: int, *, rows: bool) -> ServerCipher | None:
    """The one from ``encryption.rotate_at`` on; None where the key stays.

    Raises:
        ConfigError: it cannot be, or has no room for so many clients.
    """
    turn = settings.rotate_at
    if turn is None:
        return None
    if settings.keys is None:
        takes, cure = "null with a key that is made for the run", "or give encryption.keys"
        raise ConfigError("encryption.rotate_at", turn, takes, cure)
    if rows:
        takes = "null for a method that mixes rows of several rounds' updates"
        raise ConfigError("encryption.rotate_at", turn, takes)
    cipher = load_server(Path(settings.keys) / NEXT_CONTEXT)
    cipher.parameters.check(max(1, clients))
    return cipher


def deployed(settings: Encryption) -> bool:
    """Whether there is a registry that each device has too."""
    return settings.keys is not None and (Path(settings.keys) / REGISTRY).exists()


def registry_for(settings: Encryption, said: Said) -> Registry:
    """The deployment's registry; in a simulation what the clients say of themselves.

    Raises:
        ConfigError: two clients with one key, or what is no registry.
        FedpersError: a client whose key is not the one in the registry.
    """
    offered = [Registry.from_json(str(one.get("identities"))) for one in said]
    registry = Registry(p for one in offered for p in one.publics.values())
    if deployed(settings):
        registry = registry_in(Path(settings.keys or ""))
    for one in offered:
        for public in one.publics.values():
            registry.check(public)
    return registry


def stranger(registry: Registry, said: Mapping[str, Any]) -> str | None:
    """Why a node that comes later has clients that nobody knows; None if they are known."""
    try:
        for public in Registry.from_json(str(said.get("identities"))).publics.values():
            registry.check(public)
    except FedpersError as error:
        return str(error)
    return None
