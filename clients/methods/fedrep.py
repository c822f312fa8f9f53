"""FedRep (Collins et al., ICML 2021, arXiv 2102.07078): head first, then the shared body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from clients.base import LocalAlgorithm, algorithms
from fedpers.config import setting
from fedpers.phases import Phase


@dataclass
class FedRepParams:
    """``head_epochs``: epochs on the head before each round's ``training.epochs`` on the body.

    The paper takes about ten on the head and few on the body.
    """

    head_epochs: int = setting(10, least=1)


@algorithms.register("fedrep")
class FedRep(LocalAlgorithm):
    """Algorithm 1: the head under a frozen body, then the body under the frozen new head.

    Scored with the body just combined under the client's own head, as FedPer.
    """

    Params: ClassVar[type] = FedRepParams
    keeps = ("head",)
    sends = ("body",)

    def phases(self) -> Sequence[Phase]:
        """The head, then everything below it."""
        model = self.branch(self.keeps)
        below = tuple(slot for slot in self.slots if slot != "head")
        return [
            Phase(
                name="head",
                model=model,
                trains=("head",),
                released=True,  # it never leaves, but the body's gradients flow through it
                epochs=self.params.head_epochs,
            ),
            Phase(name="body", model=model, trains=below, released=True),
        ]
