"""FedPer (Arivazhagan et al. 2019, arXiv 1912.00818): the body is shared, the head is personal."""

from __future__ import annotations

from clients.base import LocalAlgorithm, algorithms


@algorithms.register("fedper")
class FedPer(LocalAlgorithm):
    """Body and personal head are trained together; only the body is sent.

    Scored with the body just combined under the client's own head. There is no global model: no
    head is ever averaged.
    """

    keeps = ("head",)
    sends = ("body",)
