"""The federation's file: which devices there are, the key of each, and for which clients it may
speak; and where its gateway is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from fedpers.errors import ConfigError, line_of
from fedpers.once import OnceLoader

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
ADDRESS = re.compile(r"([A-Za-z0-9.-]+|\[[0-9a-f:]+\]):([0-9]{1,5})")
PATH = re.compile(r"[A-Za-z0-9/._+@ -]+")  # what needs no escaping in the gateway's settings


@dataclass(frozen=True)
class Member:
    """A device of the federation.

    Attributes:
        key: the public half of its node key, in PEM, as Flower sends it.
        clients: whom it may speak for.
    """

    key: bytes
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Federation:
    """Who is in a federation, and where its gateway is.

    Attributes:
        devices: by name, which is the common name of the device's certificate.
        listen: where the gateway listens.
        superlink: where the SuperLink does, on loopback.
        certificate, certificate_key: the gateway's own.
        authority: whose certificates devices have.
        revoked: the authority's list of revoked certificates (CRL).
        superlink_authority: who issued the SuperLink's certificate, for ``localhost``.
        megabytes: the largest body of a call.
        requests: calls a second, of each device.
    """

    devices: Mapping[str, Member] = field(default_factory=dict)
    listen: str = "0.0.0.0:9092"
    superlink: str = "127.0.0.1:9091"
    certificate: str = "/etc/fedpers/gateway.pem"
    certificate_key: str = "/etc/fedpers/gateway.key"
    authority: str = "/etc/fedpers/devices-ca.crt"
    revoked: str = "/etc/fedpers/revoked.pem"
    superlink_authority: str = "/etc/fedpers/ca.crt"
    megabytes: int = 64
    requests: int = 100

    def __post_init__(self) -> None:
        for name in ("listen", "superlink"):
            found = ADDRESS.fullmatch(getattr(self, name))
            if not found or not 0 < int(found[2]) < 2**16:
                raise ConfigError(f"federation.{name}", getattr(self, name), "HOST:PORT")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, str) and not PATH.fullmatch(value.replace(":", "")):
                takes = "letters, digits, spaces and any of / . _ + @ -"
                raise ConfigError(f"federation.{f.name}", value, takes)
            if isinstance(f.default, int) and (type(value) is not int or not 1 <= value <= 10**6):
                raise ConfigError(f"federation.{f.name}", value, "an integer in 1..1000000")

    def name_of(self, key: bytes) -> str | None:
        """The device that has a key, in PEM; None for a key that is no device's."""
        try:
            asked = _pem(load_pem_public_key(key))
        except (ValueError, UnsupportedAlgorithm):
            return None
        return next((name for name, member in self.devices.items() if member.key == asked), None)


def read_federation(path: Path) -> Federation:
    """The federation in a YAML file.

    ``devices`` is a mapping of names to ``key`` (OpenSSH's line, or the path of a file with it,
    relative to this file) and ``clients`` (without it the one of the device's own name); the other
    keys are ``Federation``'s.

    Raises:
        ConfigError: it cannot be read, has an unknown key, a name or a key that comes twice, a
            client that two devices have, or an impossible value.
    """
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader=OnceLoader)
    except OSError as error:
        takes = f"a file that can be read ({error.strerror})"
        raise ConfigError("federation", str(path), takes) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = line_of(error)[:200]
        raise ConfigError("federation", str(path), f"valid YAML ({line})") from None
    known = {f.name for f in fields(Federation)}
    if not isinstance(given, dict) or not isinstance(given.get("devices"), dict):
        raise ConfigError("federation", str(path), "a mapping with `devices`")
    for key, value in given.items():
        if key not in known:
            raise ConfigError("federation", str(key), f"keys of {', '.join(sorted(known))}")
        if key != "devices" and not isinstance(value, str | int):
            raise ConfigError(f"federation.{key}", value, "a text or a number")
    settings: dict[str, Any] = {
        key: value if key in ("megabytes", "requests") else str(value)
        for key, value in given.items()
    }
    devices = {str(name): _member(name, of, path) for name, of in given["devices"].items()}
    _check_apart(devices)
    settings["devices"] = devices
    return Federation(**settings)


def _member(name: Any, given: Any, path: Path) -> Member:
    where = f"federation.devices.{name}"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError("federation.devices", name, "names of letters, digits, . _ and -")
    if not isinstance(given, dict) or not {"key"} <= set(given) <= {"key", "clients"}:
        raise ConfigError(where, given, "`key` and, if it has others than its name, `clients`")
    clients = given.get("clients", [name])
    if not isinstance(clients, list) or not clients or not all(type(c) is str for c in clients):
        raise ConfigError(f"{where}.clients", clients, "a list of clients' ids, which are texts")
    return Member(_key(f"{where}.key", str(given["key"]), path.parent), tuple(clients))


def _key(where: str, given: str, folder: Path) -> bytes:
    cure = "`ssh-keygen -t ecdsa -b 384` makes a pair"
    try:
        text = given if given.startswith("ecdsa-") else (folder / given).read_text()
        return _pem(load_ssh_public_key(text.strip().encode()))
    except OSError as error:
        takes = f"a public key, or a file with one ({error.strerror})"
        raise ConfigError(where, given, takes, cure) from None
    except (ValueError, UnsupportedAlgorithm):
        takes = "an ECDSA public key in OpenSSH's format"
        raise ConfigError(where, given, takes, cure) from None


def _pem(key: Any) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("no key on an elliptic curve")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _check_apart(devices: Mapping[str, Member]) -> None:
    """Refuse what two devices have in common; names, as they are, and without regard to case."""
    seen: dict[Any, str] = {}
    for name, member in devices.items():
        clients = dict.fromkeys(("client", client) for client in member.clients)
        own: list[tuple[str, Any]] = [("name", name.lower()), ("key", member.key), *clients]
        for what in own:
            if what in seen:
                takes = f"a {what[0]} of its own, which {seen[what]} has already"
                raise ConfigError(f"federation.devices.{name}", name, takes)
            seen[what] = name
