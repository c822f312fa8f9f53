"""pFedGraph (Ye et al., ICML 2023): plain training, of a model mixed for this client."""

from __future__ import annotations

from clients.base import algorithms
from clients.methods.pfedsim import PFedSim


@algorithms.register("pfedgraph")
class PFedGraph(PFedSim):
    """As pFedSim's client: everything is trained together and sent, and the personal model is the
    one last trained here."""

    derives = ()
