"""FedDPA (Long et al., NeurIPS 2024, arXiv 2403.19211): the mean of the global adapters."""

from __future__ import annotations

from strategies.base import PersonalizedStrategy, strategies


@strategies.register("feddpa")
class FedDPA(PersonalizedStrategy):
    """The mean, not weighted by examples, as published."""

    weights = "equal"
