"""Which clients a device may speak for: those that its registered key names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.federation import Federation, read_federation


class Registered(Protocol):
    """What Flower knows of a node (its ``NodeInfo``)."""

    @property
    def name(self) -> str:
        """As ``flwr supernode register --name`` set it."""

    @property
    def public_key(self) -> bytes:
        """The key it is known by, in PEM; nothing where no node has one."""


class Claims:
    """Whether a node may claim clients.

    The federation's file says whom a key may speak for. Without one it is the client of the name
    that the key was registered under. In a simulation there are no keys, and none is asked for.

    Args:
        federation: the file, read.
        devices: nodes are devices.
    """

    def __init__(self, federation: Federation | None = None, *, devices: bool = False) -> None:
        self.federation, self.devices = federation, devices

    def refused(self, node: Registered, claimed: Sequence[str]) -> str | None:
        """Why a node may not claim these clients; None if it may."""
        if self.federation is not None:
            name = self.federation.name_of(node.public_key)
            if name is None:
                return "its key is in no line of the federation's file"
            allowed: Sequence[str] = self.federation.devices[name].clients
        elif not self.devices or not node.public_key:
            return None
        elif not node.name:
            return "its key names no client; register it with --name, or write `federation`"
        else:
            name, allowed = node.name, [node.name]
        others = [client for client in claimed if client not in allowed]
        if others:
            return f"it claims client {others[0]!r}, and the key of {name!r} names no such client"
        return None


def claims_of(config: Config) -> Claims:
    """What settings say of claims.

    Raises:
        ConfigError: a federation's file that cannot be read, or in a simulation.
    """
    devices = config.data.partition.name == "devices"
    if config.federation is None:
        return Claims(devices=devices)
    if not devices:
        takes = "null where nodes are no devices, which have no keys of their own"
        raise ConfigError("federation", config.federation, takes)
    return Claims(read_federation(Path(config.federation)), devices=True)
