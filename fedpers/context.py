"""What a client knows of a round beside the parts that came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Context:
    """Who a client is, and what it was told; nothing in it hangs on the client's data.

    Attributes:
        client: its id.
        server_round: from 1; after a round's training, of that round.
        said: what the server said to this client alone (``said`` in the message's body): JSON-able
            values by name, empty where it said nothing, as in the leak test.
    """

    client: str
    server_round: int
    said: Mapping[str, Any] = field(default_factory=dict)
