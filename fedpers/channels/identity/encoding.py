"""Bytes that are read in one way only, and what is not answered."""

from __future__ import annotations

from collections.abc import Mapping

from fedpers.errors import ClientError


class Refused(ClientError):
    """A message that an honest side does not answer; whoever sent it is told why."""


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
