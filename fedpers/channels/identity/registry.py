"""The registry of public halves that a deployment has pinned.

Bonawitz et al. 2017, section 6: against a server that lies, clients need each other's keys from
elsewhere than from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.errors import ConfigError

TAGS = 1 << 14  # contributions that a key has; after them a client makes a new identity


@dataclass(frozen=True)
class Public:
    """The public half of an identity.

    Args:
        client: its id.
        agreement: X25519, 32 bytes.
        verifying: Ed25519, 32 bytes.
        anchor: the end of the chain of contributions, 32 bytes.
        signature: by ``verifying``, over all of this: whoever enters a key owns it, for this id.
    """

    client: str
    agreement: bytes
    verifying: bytes
    anchor: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        keys = (self.agreement, self.verifying, self.anchor)
        return encode("fedpers masked identity", self.client, *keys)

    def to_json(self) -> dict[str, str]:
        """Hexadecimal texts, but for the id."""
        keys = ("agreement", "verifying", "anchor", "signature")
        return {"client": self.client, **{key: getattr(self, key).hex() for key in keys}}

    @classmethod
    def from_json(cls, found: Mapping[str, str]) -> Public:
        """The public half that ``to_json`` wrote.

        Raises:
            ConfigError: not one, or not signed by itself.
        """
        name = f"public identity {found.get('client')!r}"
        keys = ("agreement", "verifying", "anchor", "signature")
        try:
            public = cls(str(found["client"]), *(bytes.fromhex(found[key]) for key in keys))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(name, sorted(found), f"client, {', '.join(keys)}") from None
        if not verified(public.verifying, public.signature, public.signed):
            raise ConfigError(name, "a signature of other keys", "what that client published")
        return public


@lru_cache(1 << 14)  # in a simulation thousands of clients check the same signatures
def verified(verifying: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature is of that key and message."""
    try:
        Ed25519PublicKey.from_public_bytes(verifying).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Registry:
    """The public halves that a deployment has pinned.

    Args:
        publics: one a client.

    Raises:
        ConfigError: two of one client, or one key for two clients.
    """

    def __init__(self, publics: Iterable[Public]) -> None:
        self.publics: dict[str, Public] = {}
        owners: dict[bytes, str] = {}
        self._seen: dict[str, tuple[int, bytes]] = {}  # the latest contribution that was checked
        for public in publics:
            for key in (public.client.encode(), public.agreement, public.verifying, public.anchor):
                if owner := owners.get(key):
                    takes = "a client, and a key, once"
                    raise ConfigError("registry", f"{owner} and {public.client}", takes)
                owners[key] = public.client
            self.publics[public.client] = public

    @classmethod
    def from_json(cls, text: str) -> Registry:
        """The registry that ``to_json`` wrote, each signature checked.

        Raises:
            ConfigError: as above, or not JSON.
        """
        try:
            found = json.loads(text)
        except ValueError:
            raise ConfigError("registry", "no JSON", "a list of public identities") from None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise ConfigError("registry", type(found).__name__, "a list of public identities")
        return cls(Public.from_json(entry) for entry in found)

    def to_json(self) -> str:
        """A list of public halves."""
        return self._json

    @cached_property
    def _json(self) -> str:
        return json.dumps([public.to_json() for public in self.publics.values()], indent=1)

    def __getitem__(self, client: str) -> Public:
        """A client's public half.

        Raises:
            Refused: unknown.
        """
        if client not in self.publics:
            raise Refused(f"{client}: got an unknown client, takes those of the registry")
        return self.publics[client]

    def check(self, offered: Public) -> None:
        """Whether a public half is the pinned one, as ssh asks of a host.

        Raises:
            Refused: the client is unknown, or its key has changed.
        """
        if self[offered.client] != offered:
            cure = "if it was enrolled anew, replace it in the registry"
            raise Refused(f"{offered.client}: its identity key has changed; {cure}")

    def check_contribution(self, client: str, tag: int, value: bytes) -> None:
        """Whether ``value`` is the client's contribution to ``tag``.

        Raises:
            Refused: it is not.
        """
        seen, latest = self._seen.get(client, (0, self[client].anchor))
        if tag < seen:
            seen, latest = 0, self[client].anchor
        if not 0 < tag <= TAGS or hashed(value, tag - seen) != latest:
            raise Refused(f"{client}: got a contribution that is not its own for tag {tag}")
        self._seen[client] = (tag, value)


def hashed(value: bytes, times: int) -> bytes:
    """SHA-256 of SHA-256 of ... ``value``."""
    for _ in range(times):
        value = hashlib.sha256(b"fedpers contribution" + value).digest()
    return value
