"""What both halves of the protocol say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fedpers.channels.identity.encoding import decode, encode, table, text, untable
from fedpers.errors import FedpersError


class Dropped(FedpersError):
    """A round whose sum stays masked; nothing was learned, and the next round has a new tag."""


@dataclass(frozen=True)
class Upload:
    """What leaves a client in MaskedInputCollection.

    Args:
        client: whose.
        session: digest of what was agreed for the tag.
        boxes: one a neighbour, in order of ids, all of one size, side by side.
        commitments: 32 bytes a seed, the client's own first, then a neighbour's each.
        vector: the masked words, packed.
        signature: of the client.
    """

    client: str
    session: bytes
    boxes: bytes
    commitments: bytes
    vector: bytes
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        parts = (self.boxes, self.commitments, self.vector)
        digests = (hashlib.sha256(part).digest() for part in parts)
        return encode("fedpers masked upload", self.session, self.client, *digests)

    def to_bytes(self) -> bytes:
        """The message."""
        parts = (self.boxes, self.commitments, self.vector)
        return encode(self.client, self.session, *parts, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Upload:
        """The upload that ``to_bytes`` wrote.

        Raises:
            Refused: ``data`` is none.
        """
        client, *rest = decode(data, 6, "upload")
        return cls(text(client, "client"), *rest)


@dataclass(frozen=True)
class Request:
    """What one helper is asked for in Unmasking.

    Args:
        survivors: their ids, in order.
        signatures: of a quorum of them under the set.
        boxes: owner -> the box for this helper.
    """

    survivors: tuple[str, ...]
    signatures: Mapping[str, bytes]
    boxes: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """The message."""
        return encode(encode(*self.survivors), table(self.signatures), table(self.boxes))

    @classmethod
    def from_bytes(cls, data: bytes) -> Request:
        """The request that ``to_bytes`` wrote.

        Raises:
            Refused: ``data`` is none.
        """
        survivors, signatures, boxes = decode(data, 3, "request")
        names = tuple(text(name, "survivor") for name in decode(survivors, None, "survivors"))
        return cls(names, untable(signatures, "signatures"), untable(boxes, "boxes"))


@dataclass(frozen=True)
class Shares:
    """What a helper gives in Unmasking.

    Args:
        client: the helper.
        survivors: digest of the set that the shares are for.
        owners: whose shares they are -> of the own seed, then of the pair seeds of those of its
            neighbours that dropped out, in order of ids, 16 bytes each.
        signature: of the helper.
    """

    client: str
    survivors: bytes
    owners: Mapping[str, bytes]
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        rows = [piece for owner in sorted(self.owners) for piece in (owner, self.owners[owner])]
        return encode("fedpers masked shares", self.client, self.survivors, *rows)

    def to_bytes(self) -> bytes:
        """The message."""
        return encode(self.client, self.survivors, table(self.owners), self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> Shares:
        """The shares that ``to_bytes`` wrote.

        Raises:
            Refused: ``data`` is none.
        """
        client, survivors, owners, signature = decode(data, 4, "shares")
        return cls(text(client, "client"), survivors, untable(owners, "shares"), signature)
