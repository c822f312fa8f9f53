"""FedDPA (Long et al., NeurIPS 2024, arXiv 2403.19211): the mean of the global adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strategies.base import PersonalizedStrategy, strategies
from strategies.mixing import Mixing


@strategies.register("feddpa")
class FedDPA(PersonalizedStrategy):
    """The mean, not weighted by examples, as published."""

    def mixing(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> Mixing:
        """One row of equal weights."""
        return Mixing.equal(len(reports))
