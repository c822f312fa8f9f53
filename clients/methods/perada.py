"""PerAda (Xie et al., CVPR 2024, arXiv 2302.06637): a personal adapter held near one that
generalises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from clients.branches import two_branches
from clients.training.view import ModelView
from fedpers.config import setting
from fedpers.context import Context
from fedpers.parts import Part, Parts
from fedpers.phases import Phase

LOGITS_SCALE = 4.0  # as in strategies/methods/perada.py


@dataclass
class PerAdaParams:
    """``lam`` is the paper's lambda in L_k(v) + (lambda/2) ||v - w||^2.

    (The published code leaves out the 1/2: its lambda = 1 is 2 here.)
    """

    lam: float = setting(1.0, above=0)
    personal_epochs: int | None = setting(None, least=1)
    personal_lr: float | None = setting(None, above=0)


@algorithms.register("perada")
class PerAda(LocalAlgorithm):
    """A client's round (Algorithm 1): first the personal branch, then the one that is sent.

    v_k <- SGD on L_k(v) + (lambda/2) ||v - w||^2, where w is what was received; then theta_k <- w,
    SGD on L_k(theta). theta_k is sent, v_k never leaves. Neither branch reads the other.
    """

    Params = PerAdaParams
    keeps = ("body", "head")
    derives = ("logits",)
    scored = "after local training"

    def phases(self) -> Sequence[Phase]:
        """The personal branch, then the shared one."""
        params = self.params
        return two_branches(self, params.lam, epochs=params.personal_epochs, lr=params.personal_lr)

    def derived(self, name: str, upload: Parts, view: ModelView, public: Tensor) -> Part:
        """The scores on the public examples, to be averaged, divided by 4 to keep them small."""
        working = self.receive(upload, Parts(), Context(client="", server_round=0))
        scores = view.outputs(self.branch(()), working, public).scores
        return Part.of({"logits": scores / LOGITS_SCALE})
