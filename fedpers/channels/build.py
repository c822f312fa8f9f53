"""Which channel the settings ask for; both halves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedpers.channels.base import Channel, Method, Needs
from fedpers.channels.client_noise import ClientNoise
from fedpers.channels.client_noise_node import ClientNoiseNode
from fedpers.channels.identity.home import REGISTRY
from fedpers.channels.identity.registry import Public
from fedpers.channels.masked.channel import Masked
from fedpers.channels.masked.node import MaskedNode, enrol
from fedpers.channels.named import channel_named
from fedpers.channels.node import ClientSide, NodeChannel
from fedpers.channels.sealed.channel import Sealed
from fedpers.channels.sealed.keys import SERVER_FILE
from fedpers.channels.sealed.node import SealedNode
from fedpers.config import Config, Encryption
from fedpers.errors import ConfigError
from fedpers.privacy import calibrated, mechanism_named
from fedpers.privacy.accounting import default_delta
from fedpers.privacy.noise import Sources

HIDING = (Sealed.name, Masked.name)
"""Names of the channels in which the server sees no single update."""


def channel_name(config: Config) -> str:
    """The name of the channel that the settings ask for, which a device's owner allows or not."""
    return _kind(config).name if config.encryption.enabled else config.channel


def least_noise(config: Config) -> float:
    """The least noise multiplier to which private settings can lead, whatever the method: of one
    phase a round, and nothing spent before; more of either is more noise, and so is a delta below
    the largest one, where they name none. 0 where none is enough."""
    privacy, strategy = config.privacy, config.strategy
    rate, steps = privacy.sampling_rate, max(1, int(strategy.fraction * config.rounds))
    steps *= privacy.steps
    if privacy.by_client:  # one noised sum a round
        rate, steps = strategy.fraction, config.rounds
        rate = 1.0 if shares_noise(config) else rate  # who takes part is known then
    kind, delta = mechanism_named(privacy.mechanism), privacy.delta or default_delta(0)
    try:
        return float(calibrated(kind, privacy.epsilon, delta, rate, steps).sigma)
    except ValueError:
        return 0.0


def check_channel(config: Config, needs: Needs, weighted: str) -> None:
    """Refuse a method that the channel cannot serve.

    Args:
        weighted: see ``fedpers.channels.base.Method``.

    Raises:
        ConfigError: naming what it needs, and the cure.
    """
    if config.privacy.by_client:
        ClientNoise.check(config, needs, weighted)
    if config.encryption.enabled and config.channel != "plain":
        takes, cure = "plain with encryption.enabled=true", "leave one of them out"
        raise ConfigError("channel", config.channel, takes, cure)
    _kind(config).check(config, needs, weighted)


def settle(config: Config, needs: Needs, weighted: str, clients: int) -> None:
    """Have ``encryption.scheme: auto`` say what it takes here; ``config`` is changed in place.

    Masked sums, where a server of the method needs sums alone and cohorts are large enough: there
    is no key that all share. Else it stays, and BFV or CKKS is what it means: under a key of theirs
    that is given, and with ``privacy.unit: client``.

    Args:
        weighted: see ``fedpers.channels.base.Method``.
        clients: how many there are.
    """
    settings = config.encryption
    if not settings.enabled or settings.scheme != "auto" or config.privacy.by_client:
        return
    folder = None if settings.keys is None else Path(settings.keys)
    if folder and ((folder / SERVER_FILE).is_file() or not (folder / REGISTRY).is_file()):
        return
    try:
        Masked.check(config, needs, weighted)
        if settings.keys is None:  # else it is of devices, of which there may be any number
            Masked.check_clients(config, needs, clients)
    except ConfigError:
        return
    settings.scheme = Masked.name


def _kind(config: Config) -> type[Channel]:
    """What updates pass through, but for noise around it."""
    if not config.encryption.enabled:
        return channel_named(config.channel)
    return Masked if config.encryption.scheme == "masked" else Sealed


def check_clients(config: Config, needs: Needs, clients: int) -> None:
    """Refuse more clients than the channel has room for, or files that it cannot use.

    Args:
        clients: how many there are.

    Raises:
        ConfigError: naming the setting and the cure.
    """
    _kind(config).check_clients(config, needs, clients)


def with_keys(
    config: Config, needs: Needs, clients: int, server: Path, nodes: Mapping[str, Path]
) -> Config:
    """The settings of a server that has the keys which the channel takes, see ``Channel.deal``."""
    return _kind(config).deal(config, needs, clients, server, nodes)


def identify(client: str, folder: Path) -> Public:
    """Make the identity of a client, in a folder of its owner; its public half.

    Raises:
        ConfigError: there is one.
    """
    return enrol(client, folder).public


def hides_updates(config: Config) -> bool:
    """Whether the server cannot read single updates."""
    return config.encryption.enabled


def shares_noise(config: Config) -> bool:
    """Whether clients add the noise, each its share, as nobody else is to see their updates."""
    return config.privacy.by_client and hides_updates(config)


def send_plainly(config: Config) -> None:
    """Have updates pass no channel that hides them; ``config`` is changed in place."""
    config.encryption = Encryption()


def describe(config: Config, keys: Path | None) -> str:
    """What a device is told of its channel before it joins, see ``Channel.described``."""
    return _kind(config).described(keys)


def channel_of(method: Method) -> Channel:
    """The server's half. A method that shares nothing has nothing to seal."""
    config = method.config
    hides = config.encryption.enabled and not method.layouts
    inner = (channel_named(config.channel) if hides else _kind(config))(method)
    return ClientNoise(inner) if config.privacy.by_client else inner


def node_channel(
    config: Config,
    stores: str,
    population: int,
    sources: Sources,
    *,
    keys: Path | None = None,
    method: ClientSide | None = None,
    least: int = 1,
) -> NodeChannel:
    """The nodes' half.

    Args:
        stores: the folder of the clients' stores, in that of the run.
        population: how many clients there are.
        sources: of what has to be secret.
        keys: the folder with a device's keys; None for ``encryption.keys``.
        method: the client side of the method.
        least: clients in a sum, at the least, as a device's owner has it.
    """
    inner: NodeChannel
    kind = _kind(config)
    if kind is Masked:
        inner = MaskedNode(config, sources, keys)
    elif kind is Sealed:
        inner = SealedNode(config, stores, population, sources, keys, method, least)
    else:
        inner = kind.node()
    if not config.privacy.by_client:
        return inner
    noise = least_noise(config) if shares_noise(config) else 0.0
    return ClientNoiseNode(config, inner, sources, noise)
