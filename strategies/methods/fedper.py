"""FedPer (Arivazhagan et al. 2019, arXiv 1912.00818): only the body is averaged."""

from __future__ import annotations

from strategies.base import PersonalizedStrategy, strategies


@strategies.register("fedper")
class FedPer(PersonalizedStrategy):
    """The body is averaged as in FedAvg; no head ever reaches the server."""

    shares = ("body",)
