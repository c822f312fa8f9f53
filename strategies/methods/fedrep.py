"""FedRep (Collins et al., ICML 2021, arXiv 2102.07078): only the body is averaged."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedper import FedPer


@strategies.register("fedrep")
class FedRep(FedPer):
    """On the server the same as FedPer."""
