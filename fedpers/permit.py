"""A permit: settings that an operator has signed, so that devices know who asks.

Ed25519 (RFC 8032) over the text of the permit, which says which run it is for, under which
settings and until when. What in the settings is the server's own affair, as its folders are, is
not in it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.paths import paths_of

CONTEXT = b"fedpers permit 1\n"  # so that no signature over anything else is one
OWN = ("simulation", "round_timeout")  # of the server, beside its paths
NAMES = {"run", "expires", "settings", "algorithm", "server_params"}


@dataclass(frozen=True)
class Permit:
    """A permit as it travels.

    Attributes:
        text: JSON, an object of ``NAMES``; ``expires`` in seconds since 1970.
        operator: the public key that it is signed with, 32 bytes in hexadecimal.
        signature: 64 bytes in hexadecimal.
    """

    text: str
    operator: str
    signature: str

    @classmethod
    def signed(
        cls,
        key: Ed25519PrivateKey,
        config: Config,
        algorithm: str,
        server_params: Sequence[str],
        expires: float,
        run: str | None = None,
    ) -> Permit:
        """Sign settings.

        Args:
            key: the operator's.
            algorithm: the method's client side.
            server_params: names in ``strategy.params`` that the method's server side takes.
            expires: seconds since 1970.
            run: of an earlier permit, whose run goes on; a new one if None.
        """
        said = {
            "run": run or secrets.token_hex(16),
            "expires": int(expires),
            "settings": settings_of(config),
            "algorithm": algorithm,
            "server_params": list(server_params),
        }
        text = json.dumps(said)
        return cls(text, public_of(key), key.sign(CONTEXT + text.encode()).hex())

    @classmethod
    def from_json(cls, given: Any) -> Permit:
        """What ``asdict`` of a permit gave.

        Raises:
            ValueError: something else.
        """
        names = ("text", "operator", "signature")
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise ValueError(f"permit: takes an object of {', '.join(names)}")
        if any(type(given[name]) is not str for name in names):
            raise ValueError("permit: takes texts")
        return cls(**given)

    def said(self) -> dict[str, Any]:
        """What the operator signed.

        Raises:
            ValueError: the signature is not the operator's, or the text says something else.
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.operator))
            key.verify(bytes.fromhex(self.signature), CONTEXT + self.text.encode())
        except (InvalidSignature, ValueError):
            raise ValueError("permit: its signature is not that of its operator") from None
        said = json.loads(self.text)
        if not isinstance(said, dict) or set(said) != NAMES:
            raise ValueError(f"permit: takes an object of {', '.join(sorted(NAMES))}")
        if type(said["run"]) is not str or type(said["expires"]) is not int:
            raise ValueError("permit: takes a text for a run and whole seconds for expires")
        return said

    def allows(self, config: Config, algorithm: str, server_params: Sequence[str]) -> bool:
        """Whether these are the settings that were signed.

        Raises:
            ValueError: see ``said``.
        """
        said = self.said()
        asked = (settings_of(config), algorithm, list(server_params))
        return (said["settings"], said["algorithm"], said["server_params"]) == asked

    def write(self, path: Path) -> None:
        """Write the file that ``read_permit`` reads."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_permit(path: Path) -> Permit:
    """A permit that is in a file.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    cure = "make one with `fedpers operator sign`"
    try:
        return Permit.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        reason = f"a file that can be read ({error.strerror})"
        raise ConfigError("permit", str(path), reason, cure) from None
    except ValueError as error:
        raise ConfigError("permit", str(path), f"a permit ({error})", cure) from None


def settings_of(config: Config) -> dict[str, Any]:
    """The settings as they are signed: without what is the server's own."""
    settings: dict[str, Any] = json.loads(config.to_json())
    for node, name in paths_of(config):
        (section,) = [s for s in _sections(config, settings) if s[0] is node]
        section[1].pop(name)
    for name in OWN:
        settings.pop(name)
    return settings


def _sections(node: Any, settings: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    found = [(node, settings)]
    for name, value in settings.items():
        if isinstance(value, dict) and hasattr(below := getattr(node, name, None), "__dict__"):
            found += _sections(below, value)
    return found


def public_of(key: Ed25519PrivateKey) -> str:
    """The public half of an operator's key, as a policy names it."""
    return key.public_key().public_bytes_raw().hex()


def new_operator(path: Path) -> str:
    """Make an operator's key, in a file that its owner alone may read; its public half.

    Raises:
        ConfigError: there is such a file already.
    """
    key = Ed25519PrivateKey.generate()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError("--out", str(path), "a file that is not there yet") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(key.private_bytes_raw().hex() + "\n")
    return public_of(key)


def read_operator(path: Path) -> Ed25519PrivateKey:
    """An operator's key.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        takes = f"a file that can be read ({error.strerror})"
        raise ConfigError("--key", str(path), takes, "`fedpers operator new` makes one") from None
    except ValueError:
        takes = "a key that `fedpers operator new` made"
        raise ConfigError("--key", str(path), takes) from None
