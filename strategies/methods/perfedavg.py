"""Per-FedAvg (Fallah et al., NeurIPS 2020, arXiv 2002.07948): the mean of the meta-models."""

from __future__ import annotations

from strategies.base import PersonalizedStrategy, strategies


@strategies.register("perfedavg")
class PerFedAvg(PersonalizedStrategy):
    """Every client weighs the same, as in the paper's Algorithm 1."""

    weights = "equal"
