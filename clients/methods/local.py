"""Local-only training: no collaboration. The second baseline every method is judged by."""

from __future__ import annotations

from clients.base import LocalAlgorithm, algorithms


@algorithms.register("local")
class Local(LocalAlgorithm):
    """Each client trains its own copy of everything and sends nothing."""

    keeps = ("body", "head")
    sends = ()
    scored = "after local training"
