"""Metrics of language models, of tallies that are added up."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from fedpers.tasks.token_counts import TokenCounts

FARTHEST = 50.0  # nats a token: e to that is still a number that can be written


def perplexity(tallies: Sequence[TokenCounts], mode: str) -> float | None:
    """e to the mean negative log-likelihood of all tokens; None without any."""
    tokens = sum(tally.tokens for tally in tallies)
    if not tokens:
        return None
    return exp(min(FARTHEST, sum(tally.nll[mode] for tally in tallies) / tokens))


def accuracy(tallies: Sequence[TokenCounts], mode: str) -> float | None:
    """The share of tokens that were the likeliest."""
    tokens = sum(tally.tokens for tally in tallies)
    return sum(sum(tally.right[mode]) for tally in tallies) / tokens if tokens else None


def ece(tallies: Sequence[TokenCounts], mode: str) -> float | None:
    """sum_b |right_b - confidence_b| / tokens over bins b of the likeliest token's probability
    (Guo et al. 2017, 1706.04599)."""
    tokens = sum(tally.tokens for tally in tallies)
    if not tokens:
        return None
    right = [sum(bins) for bins in zip(*(t.right[mode] for t in tallies), strict=True)]
    trust = [sum(bins) for bins in zip(*(t.confidence[mode] for t in tallies), strict=True)]
    return float(sum(abs(r - c) for r, c in zip(right, trust, strict=True))) / tokens
