"""Local-only training: the server has nothing to do."""

from __future__ import annotations

from strategies.base import PersonalizedStrategy, strategies


@strategies.register("local")
class Local(PersonalizedStrategy):
    """Nothing is shared; the rounds only set the pace."""

    shares = ()
