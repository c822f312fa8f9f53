"""What a client reports of its texts: sums over tokens, of which every metric is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fedpers.tasks.base import MODES
from fedpers.tasks.checks import MOST, check_between, check_count, check_counts, check_modes
from fedpers.tasks.won import WonTally, won_of

BINS = 10
LEAST = -100.0  # log-probability: what a model that broke down is counted as


@dataclass(frozen=True)
class TokenCounts(WonTally):
    """One client's predictions of tokens on one split.

    Args:
        n: texts, >= 0.
        tokens: of all of them, that were scored.
        nll: by mode, the sum of the tokens' negative log-likelihoods, in nats; a mode that was not
            evaluated is absent.
        right: by mode, how often the likeliest token was right, by its probability in ten bins.
        confidence: by mode, the sums of that probability, in the same bins.
        won: won[mode][over], to how many texts ``mode`` gives a higher likelihood.

    Raises:
        ValueError: the sums cannot come from so many texts and tokens.
    """

    n: int
    tokens: int
    nll: dict[str, float]
    right: dict[str, list[int]]
    confidence: dict[str, list[float]]
    won: dict[str, dict[str, int]]

    def __post_init__(self) -> None:
        check_count("n", self.n, MOST)
        check_count("tokens", self.tokens, MOST if self.n else 0)
        check_modes("nll", self.nll, set(MODES), subset=True)
        modes = set(self.nll)
        for name in ("right", "confidence"):
            check_modes(name, getattr(self, name), modes)
        for mode in modes:
            check_between(f"nll.{mode}", self.nll[mode], 0, -LEAST * self.tokens)
            check_counts(f"right.{mode}", self.right[mode], BINS)
            check_count(f"right.{mode} in all", sum(self.right[mode]), self.tokens)
            sums = self.confidence[mode]
            if not isinstance(sums, list) or len(sums) != BINS:
                raise ValueError(f"confidence.{mode}: takes {BINS} sums")
            for value in sums:
                check_between(f"confidence.{mode}", value, 0, self.tokens)
            check_between(f"confidence.{mode} in all", sum(sums), 0, self.tokens)
        self.check_won(modes)

    @classmethod
    def of(cls, scored: Tensor, found: Mapping[str, Sequence[Tensor]]) -> Self:
        """The sums of log-probabilities by mode: of the target tokens [n, T], and of the likeliest
        ones; a target that is as likely as the likeliest is right.

        Args:
            scored: which places count, bool [n, T].
        """
        nll, right, confidence, each = {}, {}, {}, {}
        for mode, (target, top) in found.items():
            known = target.double().nan_to_num(LEAST, LEAST, LEAST).clamp(LEAST, 0) * scored
            each[mode] = known.sum(1)
            nll[mode] = -float(known.sum())
            trust = top.double().nan_to_num(LEAST, LEAST, LEAST).clamp(LEAST, 0).exp()[scored]
            bins = (trust * BINS).long().clamp(0, BINS - 1)
            hits = (target >= top)[scored]
            right[mode] = torch.bincount(bins[hits], minlength=BINS).tolist()
            confidence[mode] = torch.bincount(bins, weights=trust, minlength=BINS).tolist()
        won = won_of(each, torch.gt)
        return cls(len(scored), int(scored.sum()), nll, right, confidence, won)

    @property
    def modes(self) -> Collection[str]:
        """The modes of ``nll``."""
        return self.nll

    def with_gated(self, mode: str) -> Self:
        """As ``mode``, which it neither wins from nor loses to."""
        return replace(
            self,
            nll={**self.nll, "gated": self.nll[mode]},
            right={**self.right, "gated": self.right[mode]},
            confidence={**self.confidence, "gated": self.confidence[mode]},
            won=self.won_with_gated(mode),
        )
