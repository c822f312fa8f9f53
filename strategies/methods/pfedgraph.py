"""pFedGraph (Ye et al., ICML 2023): who learns from whom, for each client in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpers.config import setting
from fedpers.parts import Parts
from strategies.base import Needs, strategies
from strategies.methods.pfedsim import PFedSim, similarities

ALIKE = 0.9  # cosines above it count as 1, as in the published code


@dataclass
class PFedGraphParams:
    """``lam``: how close a client's weights are held to those of a plain mean (the paper's lambda).

    ``signal``: what of two clients' heads is compared: how they moved since the last broadcast
    (``delta``, as published), what they are (``weights``), or their difference from the mean
    (``centred``).
    """

    lam: float = setting(0.8, above=0)
    signal: str = setting("delta", choices=("weights", "delta", "centred"))


@strategies.register("pfedgraph")
class PFedGraph(PFedSim):
    """In each round, for each client i, over the simplex:

    a_i = argmin sum_j -cos(D_i, D_j) a_j + lam ||a - p||^2 = proj(p + cos(D_i, .) / (2 lam)),

    where D are the heads' moves and p is 1 / K for all (the paper: by examples); models are mixed
    whole. The client's penalty towards its mixture is left out (published at 0.01).

    It is pFedSim's machinery with another rule: every client ever heard of is in the graph.
    """

    Params = PFedGraphParams
    mixes = ("body", "head")

    @classmethod
    def needs(cls, params: Any) -> Needs:
        """The heads: weights may not hang on what a client says of cosines that the server cannot
        check, and the nodes do not know lam."""
        return Needs(rows=True, single_updates="every client's head, for the graph")

    @property
    def generalisation_rounds(self) -> int:
        """None: there is a graph from the first round on."""
        return 0

    def _weights(self, models: Mapping[str, Parts]) -> Tensor:
        heads = self._signal(models)
        each = heads.reshape(len(heads), 1, -1)  # one cosine of whole heads
        self.similarity = similarities(each, self._noise(list(models)))
        return graph(self.similarity, self.params.lam)


def graph(cosines: Tensor, lam: float) -> Tensor:
    """The weights A [K, K] from cosines [K, K], each row on the simplex."""
    alike = torch.where(cosines > ALIKE, 1.0, cosines)
    return on_simplex(1 / len(cosines) + alike / (2 * lam))


def on_simplex(rows: Tensor) -> Tensor:
    """The nearest points of the probability simplex to rows [R, K] (Duchi et al. 2008, fig. 1)."""
    ordered, _ = rows.sort(dim=1, descending=True)
    excess = ordered.cumsum(dim=1) - 1
    count = torch.arange(1, rows.shape[1] + 1)
    last = (ordered - excess / count > 0).sum(dim=1, keepdim=True)  # how many stay above zero
    return (rows - excess.gather(1, last - 1) / last).clamp_min(0)
