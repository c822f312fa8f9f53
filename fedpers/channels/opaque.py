"""Parts of which only the layouts can be read: what a channel makes of an update, and of sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from fedpers.parts import Layout


class Opaque(ABC):
    """What the server holds and cannot read.

    Attributes:
        stype: how the bytes are marked on their way.
        layouts: of the parts inside, by name.
    """

    stype: ClassVar[str]
    layouts: Mapping[str, Layout]

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes on the way, without names and shapes."""

    @abstractmethod
    def to_bytes(self) -> bytes:
        """All of it as one message; ``from_bytes`` reads it back."""

    @classmethod
    @abstractmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            ClientError: it was changed, or is no such message.
        """

    @classmethod
    @abstractmethod
    def unreadable(cls, reason: str) -> Self:
        """In place of a message that cannot be read: it costs its sender, when it is looked at, and
        not the others in the message."""
