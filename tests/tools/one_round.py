"""A round of a strategy in front of nobody: updates in, a mixture and a refined one out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpers.channels.base import Turn
from fedpers.mixing import Mixing
from fedpers.parts import Parts
from strategies.base import PersonalizedStrategy


def mix(
    strategy: PersonalizedStrategy,
    updates: Mapping[str, Parts],
    mixing: Mixing,
    *,
    server_round: int = 1,
    reports: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Mix updates, and leave them for ``refine``."""
    turn = Turn(server_round, list(updates), strategy.parts)
    strategy.put(mixing, strategy.channel.mix(turn, mixing, updates).rows)
    strategy.updates, strategy.reported = updates, reports or {}
