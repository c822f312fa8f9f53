"""DFedAlt (Shi et al., ICML 2023, arXiv 2305.15157): the head, then the body that goes
to neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from clients.base import algorithms
from clients.methods.fedrep import FedRep
from fedpers.config import setting


@dataclass
class DFedAltParams:
    """``head_epochs``: epochs on the head before each round's ``training.epochs`` on the body."""

    head_epochs: int = setting(1, least=1)


@algorithms.register("dfedalt")
class DFedAlt(FedRep):
    """Algorithm 1 on a client: v_i with u_i frozen, then u_i with the new v_i frozen; u_i is sent.
    What it receives is a mixture of its neighbours' bodies and its own."""

    Params = DFedAltParams
