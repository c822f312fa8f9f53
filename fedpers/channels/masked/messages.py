"""What both halves say and refuse: bytes that are read in one way only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fedpers.errors import ClientError, FedpersError


class Refused(ClientError):
    """A message that an honest side does not answer; whoever sent it is told why."""


class Dropped(FedpersError):
    """A round whose sum stays masked; nothing was learned, and the next round has a new tag."""


def encode(*pieces: bytes | str | float) -> bytes:
    """Pieces after their lengths, so that no two lists of as many pieces give the same bytes."""
    found = []
    for piece in pieces:
        data = piece if isinstance(piece, bytes) else str(piece).encode()
        found += [len(data).to_bytes(4, "big"), data]
    return b"".join(found)


def decode(data: bytes, pieces: int | None, what: str) -> list[bytes]:
    """The pieces that ``encode`` was given, as bytes.

    Raises:
        Refused: ``data`` is not ``pieces`` pieces (None: any number), to the last byte.
    """
    found, at = [], 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(data) or pieces not in (None, len(found)):
        takes = f"{'any number of' if pieces is None else pieces} pieces"
        raise Refused(f"{what}: got {len(data)} bytes that cannot be read, takes {takes}")
    return found


def text(data: bytes, what: str) -> str:
    """A name.

    Raises:
        Refused: not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused(f"{what}: got bytes, takes UTF-8") from None


def table(rows: Mapping[str, bytes]) -> bytes:
    """Names and what each has."""
    return encode(*(piece for name, row in rows.items() for piece in (name, row)))


def untable(data: bytes, what: str) -> dict[str, bytes]:
    """The rows that ``table`` was given.

    Raises:
        Refused: ``data`` is none, or has a name twice.
    """
    pieces = decode(data, None, what)
    names = [text(name, what) for name in pieces[::2]]
    if len(set(names)) != len(names) or len(pieces) % 2:
        raise Refused(f"{what}: got a name twice or without a row, takes each once")
    return dict(zip(names, pieces[1::2], strict=True))


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
