"""FedRoD (Chen and Chao, ICLR 2022, arXiv 2107.00778): the shared models are averaged; a client's
own head and its label shares stay with it."""

from __future__ import annotations

from strategies.base import strategies
from strategies.methods.fedavg import FedAvg


@strategies.register("fedrod")
class FedRoD(FedAvg):
    """Averages body and balanced head as FedAvg does."""
