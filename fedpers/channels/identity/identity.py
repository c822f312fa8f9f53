"""Who a client is: its long-lived keys, and what a pair of clients derives from them.

Flamingo (Ma et al. 2023): one agreement key for all rounds, a round's seeds derived.
"""

from __future__ import annotations

import hmac
import json
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.channels.identity.registry import TAGS, Public, hashed
from fedpers.errors import ConfigError
from fedpers.files import read_own, write_own
from fedpers.privacy.noise import secret

STRIDE = 1 << 7  # between contributions that are kept in memory


class Identity:
    """A client's keys. Three secrets of 32 bytes: for agreement, for signing, for contributions."""

    def __init__(self, client: str, agreement: bytes, signing: bytes, chain: bytes) -> None:
        self.client = client
        self._secrets = {"agreement": agreement, "signing": signing, "chain": chain}
        self._agreement = X25519PrivateKey.from_private_bytes(agreement)
        self._signing = Ed25519PrivateKey.from_private_bytes(signing)
        self._pairs: dict[tuple[str, bytes], bytes] = {}

    @classmethod
    def new(cls, client: str) -> Identity:
        """Fresh keys, from the operating system's randomness."""
        source = secret("identity", client)
        return cls(client, source.bits(32), source.bits(32), source.bits(32))

    def save(self, path: Path) -> None:
        """Write the keys: mode 0600, the whole file or none of it, never over one that is there.

        Raises:
            ConfigError: there is a file.
        """
        if path.exists():
            raise ConfigError("identity", str(path), "a new path", "a second key is another client")
        hexes = {name: key.hex() for name, key in self._secrets.items()}
        write_own(path, json.dumps({"client": self.client, **hexes}))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The keys that ``save`` wrote.

        Raises:
            ConfigError: no such file, others may read it, or it holds something else.
        """
        try:
            text = read_own(path)
            if text is None:
                raise ConfigError("identity", str(path), "a file", "enrol the client")
            if path.stat().st_mode & 0o077:
                raise ConfigError("identity", str(path), "mode 0600", f"chmod 600 {path}")
            found = json.loads(text)
            keys = (bytes.fromhex(found[key]) for key in ("agreement", "signing", "chain"))
            return cls(str(found["client"]), *keys)
        except (OSError, KeyError, TypeError, ValueError):
            takes = "a file that this program wrote"
            raise ConfigError("identity", str(path), takes, "restore it, or enrol anew") from None

    @cached_property
    def public(self) -> Public:
        """The public half, signed."""
        agreement = self._agreement.public_key().public_bytes_raw()
        verifying = self._signing.public_key().public_bytes_raw()
        bare = Public(self.client, agreement, verifying, self.contribution(0), b"")
        return Public(self.client, agreement, verifying, bare.anchor, self.sign(bare.signed))

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes, the same for the same message."""
        return self._signing.sign(message)

    def seed(self, other: Public, path: bytes) -> bytes:
        """32 bytes that this client and ``other`` derive and nobody else, for one path.

        HKDF-SHA-256 from the pair's X25519 agreement: from the bytes of some paths nothing can be
        told of those of another path, nor of the agreement.

        Raises:
            Refused: ``other``'s key is no point that has a secret (all zero after agreement).
        """
        name = (other.client, other.agreement)
        if name not in self._pairs:
            try:
                point = X25519PublicKey.from_public_bytes(other.agreement)
                agreed = self._agreement.exchange(point)
            except ValueError:
                raise Refused(f"{other.client}: got a bad agreement key, takes X25519") from None
            both = sorted([encode(p.client, p.agreement) for p in (self.public, other)])
            info = encode("fedpers masked", "pair", *both)
            self._pairs[name] = HKDF(SHA256(), 32, salt=None, info=info).derive(agreed)
        return derive(self._pairs[name], path)

    def contribution(self, tag: int) -> bytes:
        """This client's contribution to the graph of ``tag``: 32 bytes that nobody can foresee.

        A chain of hashes (Lamport 1981), said from its end: the anchor, which the registry pins, is
        number 0. So a client can neither choose its contribution nor have two for one tag, and who
        knows those of earlier tags knows nothing of later ones.

        Raises:
            Refused: beyond the chain.
        """
        if not 0 <= tag <= TAGS:
            raise Refused(f"tag: got {tag}, takes 1 to {TAGS}; make a new identity")
        kept = -(-tag // STRIDE)
        return hashed(self._kept[kept], kept * STRIDE - tag)

    @cached_property
    def _kept(self) -> list[bytes]:
        """Each ``STRIDE``-th contribution, the anchor first."""
        found = [self._secrets["chain"]]
        while len(found) <= TAGS // STRIDE:
            found.append(hashed(found[-1], STRIDE))
        return found[::-1]


def derive(key: bytes, path: bytes) -> bytes:
    """32 bytes for a path: the first block of HKDF-Expand (RFC 5869), which with SHA-256 is one
    HMAC; ``key`` is uniform."""
    return hmac.digest(key, path + b"\x01", "sha256")
