"""What a client knows of a round beside the parts that came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Said = Mapping[str, Any]
"""What the server said to one client alone: JSON-able values by name."""
NOTHING: Said = MappingProxyType({})


@dataclass(frozen=True)
class Context:
    """Who a client is, and what it was told; nothing in it hangs on the client's data.

    Attributes:
        client: its id.
        server_round: from 1; after a round's training, of that round.
        said: what the server said to this client alone (``said`` in the message's body); nothing
            where it had nothing to say, and in the leak test.
    """

    client: str
    server_round: int
    said: Said = field(default_factory=lambda: NOTHING)
