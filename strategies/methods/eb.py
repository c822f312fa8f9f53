"""An empirical-Bayes head, mixed with the global, the fine-tuned and the local model by evidence.

The head: class means and pooled covariance of what the head reads are sums over clients; each draws
its own class means towards the population's by how much clients are seen to differ, as in pFedFDA
(McLaughlin and Su, NeurIPS 2024, arXiv 2411.03040), but in closed form and without a client's
distribution leaving it. Then the population chooses, by summed validation losses, the settings of
each model and the weights of a mixture in which the global model alone and local training alone are
among the candidates: what it deploys is, up to the noise of that sum, no worse than either.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from fedpers import choosing
from fedpers.config import setting
from fedpers.discriminant import ASSUMED, GRID, OWN, RIDGES, Population
from fedpers.moments import read, width
from strategies.base import strategies
from strategies.methods.fedavg import FedAvg

log = logging.getLogger("fedpers")

NOISED = (
    "eb: each client's noise is in the sums by which models are chosen: with few examples that is "
    "by chance, and training alone (strategy.name=local), which sends nothing, may be far better"
)
MODELS = ("global", "fine-tuned", "empirical Bayes", "local")


@dataclass
class EBParams:
    """As on the clients."""

    tune_epochs: int = setting(20, least=1)


@strategies.register("eb")
class EB(FedAvg):
    """FedAvg; after the last round five sums over all clients: a frame and moments of features, how
    far clients are apart, losses of each model's settings, and of the mixtures' weights.

    Where sums are noised there are three: features have a fixed frame, and the variance between
    clients is assumed.
    """

    Params = EBParams

    def settle(self, server_round: int) -> None:
        """Estimate, then choose."""
        classes, features = self.task.outputs, self.model.feature_dim
        frame = self.pools.frame("eb frame", features)
        moments = read(self.pools("eb moments", width(features, classes)), classes, frame)
        assumed = torch.full((len(RIDGES),), ASSUMED)
        population = Population(moments.share, moments.mean, moments.within, assumed)
        self.known |= {"eb": population.to_part()}
        if frame.apart:
            log.warning("%s", NOISED)
        else:
            population = population.with_spread(self.pools("eb spread", 3 * len(RIDGES)))
            self.known |= {"eb": population.to_part()}
        tuned = len(choosing.epochs(self.params.tune_epochs))
        alone = len(choosing.rounds(self.config.rounds)) + len(OWN)
        losses = self.pools("eb losses", tuned + len(GRID) + alone)
        best = [int(each.argmin()) for each in torch.split(losses, [tuned, len(GRID), alone])]
        self.known |= choosing.told(*best)
        weights = choosing.mixtures(len(MODELS))
        chosen = self.pools.choose("eb mixture", len(weights))
        self.known |= choosing.told(*best, chosen)
        said = [f"{w:g} {name}" for w, name in zip(weights[chosen], MODELS, strict=True) if w]
        log.info("eb: %s", " + ".join(said))
