"""IFCA (Ghosh et al., NeurIPS 2020, arXiv 2006.04088): several models, each the mean of what those
sent who chose it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedpers.config import setting
from fedpers.parts import Part, Parts, bank
from fedpers.seeding import torch_generator
from strategies.base import Needs, strategies
from strategies.methods.fedavg import FedAvg


@dataclass
class IFCAParams:
    """``models``: how many there are (K). ``apart``: how far from each other they start, the
    deviation of what is added to each scalar; equal starts never part."""

    models: int = setting(3, least=2)
    apart: float = setting(0.1, above=0)


@strategies.register("ifca")
class IFCA(FedAvg):
    """w_k = sum of n_i w_i / sum of n_i over the clients that sent a model k; one that nobody sent
    stays as it is. All K go to every client."""

    Params = IFCAParams

    @classmethod
    def needs(cls, params: Any) -> Needs:
        """Several copies of all that is shared."""
        return Needs(banks=cls.shares)

    def first(self, parts: Mapping[str, Part]) -> Parts:
        """K models, each at its own distance from the first one."""
        drawn, copies = torch_generator(self.config.seed, "starts"), dict[str, Part]()
        for slot, part in parts.items():
            noise = torch.randn(self.params.models, part.layout.size, generator=drawn)
            starts = [part.like(part.vector + self.params.apart * n) for n in noise]
            copies |= bank(slot, starts)
        return Parts(copies)
