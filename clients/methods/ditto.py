"""Ditto (Li et al., ICML 2021, arXiv 2012.04221): a personal model held near the global one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clients.base import LocalAlgorithm, algorithms
from clients.branches import two_branches
from fedpers.config import setting
from fedpers.phases import Phase


@dataclass
class DittoParams:
    """``mu`` is the paper's lambda: how strongly the personal model v is held near w.

    mu = 0 would be local-only training under another name, and is refused.
    """

    mu: float = setting(1.0, above=0)
    personal_epochs: int | None = setting(None, least=1)
    personal_lr: float | None = setting(None, above=0)


@algorithms.register("ditto")
class Ditto(LocalAlgorithm):
    """Two branches in a round, both from what was received (Algorithm 1).

    v <- v - lr (grad F(v) + mu (v - w)), then w_k <- w - lr grad F(w_k); w_k is sent, v stays.
    The branch that is sent never reads v: it can be made private alone.
    """

    Params = DittoParams
    keeps = ("body", "head")
    scored = "after local training"

    def phases(self) -> Sequence[Phase]:
        """The personal branch, then the shared one."""
        params = self.params
        return two_branches(self, params.mu, epochs=params.personal_epochs, lr=params.personal_lr)
