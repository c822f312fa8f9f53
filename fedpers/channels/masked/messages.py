"""What both halves of the protocol say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fedpers.channels.identity.encoding import Refused, decode, encode, table, text, untable
from fedpers.errors import FedpersError

CHECKSUM = 32


class Dropped(FedpersError):
    """A round whose sum stays masked; nothing was learned, and the next round has a new tag."""


def summed(data: bytes) -> bytes:
    """``data`` and its SHA-256, by which what was damaged on its way is known; who sent it, the
    transport says."""
    return data + hashlib.sha256(data).digest()


def unsummed(data: bytes, what: str) -> bytes:
    """What ``summed`` was given.

    Raises:
        Refused: it was damaged.
    """
    whole, digest = data[:-CHECKSUM], data[-CHECKSUM:]
    if hashlib.sha256(whole).digest() != digest:
        raise Refused(f"{what}: got {len(data)} bytes that were cut or changed on their way")
    return whole


@dataclass(frozen=True)
class Upload:
    """What leaves a client in MaskedInputCollection.

    Args:
        client: whose.
        session: digest of what was agreed for the tag.
        boxes: one for each neighbour that does not derive its shares, in order of ids, all of one
            size, side by side.
        commitments: 32 bytes a seed, the client's own first, then a neighbour's each.
        vector: the masked words, packed.
    """

    client: str
    session: bytes
    boxes: bytes
    commitments: bytes
    vector: bytes

    def to_bytes(self) -> bytes:
        """The message."""
        parts = (self.client, self.session, self.boxes, self.commitments, self.vector)
        return summed(encode(*parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> Upload:
        """The upload that ``to_bytes`` wrote.

        Raises:
            Refused: ``data`` is none.
        """
        client, *rest = decode(unsummed(data, "upload"), 5, "upload")
        return cls(text(client, "client"), *rest)


@dataclass(frozen=True)
class Shares:
    """What a helper gives in Unmasking.

    Args:
        client: the helper.
        survivors: digest of the set that the shares are for.
        owners: whose shares they are -> of the own seed, then of the pair seeds of those of its
            neighbours that dropped out, in order of ids, 16 bytes each.
    """

    client: str
    survivors: bytes
    owners: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """The message."""
        return summed(encode(self.client, self.survivors, table(self.owners)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Shares:
        """The shares that ``to_bytes`` wrote.

        Raises:
            Refused: ``data`` is none.
        """
        client, survivors, owners = decode(unsummed(data, "shares"), 3, "shares")
        return cls(text(client, "client"), survivors, untable(owners, "shares"))
