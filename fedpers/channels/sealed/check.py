"""What is checked before a run: methods, and the files of a key."""

from __future__ import annotations

from pathlib import Path

from fedpers.channels.base import Needs
from fedpers.channels.sealed.keys import (
    CLIENT_FILE,
    SERVER_FILE,
    load_client,
    load_server,
    parameters_for,
)
from fedpers.config import Config
from fedpers.errors import ConfigError


def check_method(config: Config, needs: Needs) -> None:
    """Refuse rules and methods that have to read updates, or would not fit.

    Raises:
        ConfigError: naming the setting and the cure.
    """
    if (rule := config.strategy.combine) != "mean":
        takes = "mean with encryption: a server that cannot read updates cannot sort them"
        cure = "set strategy.combine=mean or encryption.enabled=false"
        raise ConfigError("strategy.combine", rule, takes, cure)
    if needs.single_updates is not None or needs.banks:
        reads = needs.single_updates or "which of several models each client trained"
        takes = f"a method whose server only mixes; this one reads {reads}"
        raise ConfigError("strategy.name", config.strategy.name, takes, needs.instead or "")


def check_keys(config: Config, clients: int, *, rows: bool) -> None:
    """Check the key that ``encryption.keys`` names, or that one can be made for the run.

    Args:
        clients: how many there are.
        rows: the method has mixtures for single clients.

    Raises:
        ConfigError: a file that is missing or cannot be used, two that do not belong together, no
            room for so many clients, or a scheme that the method cannot use.
    """
    settings = config.encryption
    if settings.keys is None:
        parameters_for(settings.scheme, max(1, clients), rows=rows)
        return
    folder = Path(settings.keys)
    cure = f"fedpers keys new --out DIR --clients {clients}{' --rows' if rows else ''}"
    for name in (CLIENT_FILE, SERVER_FILE):
        if not (folder / name).is_file():
            raise ConfigError("encryption.keys", str(folder), f"a folder with {name}", cure)
    client, server = load_client(folder / CLIENT_FILE), load_server(folder / SERVER_FILE)
    if client.key_id != server.key_id:
        got = f"{CLIENT_FILE} {client.key_id} and {SERVER_FILE} {server.key_id}"
        raise ConfigError("encryption.keys", got, "two files of one key", cure)
    parameters = client.parameters
    if rows and parameters.scheme != "ckks-rows":
        raise ConfigError("encryption.keys", parameters.scheme, "ckks-rows for this method", cure)
    if settings.scheme not in ("auto", parameters.scheme.removesuffix("-rows")):
        takes = f"auto or {parameters.scheme.removesuffix('-rows')}, as the key in {folder} is"
        raise ConfigError("encryption.scheme", settings.scheme, takes)
    if clients > parameters.capacity:
        takes = f"a key with room for {clients} clients"
        raise ConfigError("encryption.keys", f"room for {parameters.capacity}", takes, cure)


def described(keys: Path | None) -> str:
    """What there is to say of the key that a device has.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    if keys is None:
        raise ConfigError("keys", None, f"the folder with {CLIENT_FILE}", "--keys DIR")
    cipher = load_client(keys / CLIENT_FILE)
    parameters = cipher.parameters
    return (
        f"key: {cipher.key_id}, {parameters.scheme}, {parameters.security} bits of security, "
        f"up to {parameters.capacity} clients"
    )
