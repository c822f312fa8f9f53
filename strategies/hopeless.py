"""Runs of which nothing will come, told at once in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_LOSS = 100.0  # of a model that has seen its scale, whatever the task


def hopeless(server_round: int, figures: Mapping[str, Any], *, shares: bool) -> str:
    """What speaks against going on, and what to do about it; "" for nothing.

    Args:
        figures: the mean ``loss`` of a round, where it is told, and where clients were evaluated
            the means of its modes.
        shares: those are shares of what is right, of which 0 is the worst.
    """
    loss = figures.get("loss")
    if server_round == 1 and isinstance(loss, float) and loss > MOST_LOSS:
        cure = "scale the inputs (data.scale), or lower training.lr"
        return f"round 1: a loss of {loss:,.0f}: this run is hopeless; stop it and {cure}"
    scores = [figures[mode] for mode in ("personal", "global") if mode in figures]
    if shares and scores and not any(scores):
        cure = "stop it and look at the data: fedpers check"
        return f"round {server_round}: nothing is right at any client: this run is hopeless; {cure}"
    return ""
