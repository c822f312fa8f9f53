"""FedBABU (Oh et al., ICLR 2022, arXiv 2106.06042): only the body is averaged."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedper import FedPer


@strategies.register("fedbabu")
class FedBABU(FedPer):
    """On the server the same as FedPer: the head is fixed and never sent."""
