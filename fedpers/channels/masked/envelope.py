"""Messages of masked sums on their way through records: bytes that the protocol alone reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from fedpers.channels.opaque import Opaque
from fedpers.parts import Layout


@dataclass(frozen=True)
class Envelope(Opaque):
    """One message of one client, or to one.

    Attributes:
        data: what ``to_bytes`` of an upload, a request or shares wrote; a signature or contribution
            as it is. Whoever takes it looks at every byte.
    """

    stype: ClassVar[str] = "fedpers.masked.v1"
    data: bytes
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return len(self.data)

    def to_bytes(self) -> bytes:
        """The message."""
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """An envelope around ``data``, whatever that is."""
        return cls(data)

    @classmethod
    def unreadable(cls, reason: str) -> Self:
        """No message at all."""
        return cls(b"")
