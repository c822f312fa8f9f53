"""Channels by name, for ``channel`` in the settings."""

from __future__ import annotations

from fedpers.channels.base import Channel
from fedpers.errors import ConfigError
from fedpers.registry import Registry

CHANNELS: Registry[type[Channel]] = Registry(
    "channel", key="channel", package="fedpers.channels", group="fedpers.channels"
)


def channel_named(name: str) -> type[Channel]:
    """The channel of that name, registered or ``package.module:Class``.

    Raises:
        ConfigError: there is none.
    """
    found = CHANNELS.get(name)
    if not (isinstance(found, type) and issubclass(found, Channel)):
        raise ConfigError(CHANNELS.key, name, "a subclass of fedpers.channels.base.Channel")
    return found
