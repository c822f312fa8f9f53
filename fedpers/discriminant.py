"""Linear discriminants of a client's own: closed forms on what the head reads.

Features z [d] whitened by A have unit covariance within clients and classes. With means nu_c there
Bayes' rule is the linear head t (nu_c . A z - |nu_c|^2 / 2) + log p_c.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from fedpers.moments import groups, whitener
from fedpers.parts import Part

RIDGES = (0.03, 0.1, 0.3)  # of the pooled covariance
ALONE = (0.1, 0.3, 0.6, 0.9)  # of a client's own, of a few examples
BETWEEN = (0.1, 0.3, 1.0, 3.0)  # times the variance between clients that moments show
PRIORS = (3.0, 30.0, 1000.0)  # examples that the population's class shares count for
SCALES = (0.1, 0.3, 1.0)  # t: features are not normal, and less sure than Bayes' rule has it
GRID = tuple(product(RIDGES, BETWEEN, PRIORS, SCALES))
OWN = tuple(product(ALONE, SCALES))
LEAST = 1e-3  # variance between clients
ASSUMED = 0.3  # likewise, where it is not estimated


class Own(NamedTuple):
    """A client's examples: how many of each class [C], and their means [C, d]."""

    counts: Tensor
    means: Tensor

    @classmethod
    def of(cls, z: Tensor, y: Tensor, classes: int) -> Own:
        """Of features [n, d] and classes [n]."""
        onehot = groups(y, classes)
        counts = onehot.sum(0)
        return cls(counts, (onehot.T @ z.double()) / counts.clamp_min(1)[:, None])


class Population(NamedTuple):
    """What all clients know of all: class shares [C], class means [C, d], the covariance within
    [d, d], and the variance between clients for each of ``RIDGES``."""

    share: Tensor
    mean: Tensor
    within: Tensor
    between: Tensor

    @classmethod
    def of(cls, part: Part) -> Population:
        """From what the server sent."""
        return cls(*(part[name].double() for name in cls._fields))

    def to_part(self) -> Part:
        """To be sent."""
        return Part.of({name: tensor.float() for name, tensor in self._asdict().items()})

    def whitener(self, ridge: float) -> Tensor:
        """A [d, d]."""
        return whitener(self.within, ridge)

    def means(self, own: Own, white: Tensor, between: float) -> Tensor:
        """A client's class means nu [C, d] in whitened features: its own, drawn towards the
        population's the more, the fewer examples they are of: e = between / (between + 1/n) of the
        difference; the population's where it has none."""
        share = between / (between + 1 / own.counts.clamp_min(1))
        share = torch.where(own.counts > 0, share, 0.0)
        return (self.mean + share[:, None] * (own.means - self.mean)) @ white

    def prior(self, own: Own, counted: float) -> Tensor:
        """log p [C]: the client's class shares with the population's as so many examples."""
        found = own.counts + counted * self.share + 1e-3
        return (found / found.sum()).log()

    def spread(self, own: Own) -> Tensor:
        """What a client adds to the variance between clients: for each ridge the squared distance
        of its class means to the population's, what of it is noise, and the number of means."""
        there = own.counts > 0
        rows = []
        for ridge in RIDGES:
            white = self.whitener(ridge)
            off = ((own.means - self.mean) @ white)[there].square().mean(1).sum()
            noise = float((white @ self.within.double() @ white).trace()) / len(white)
            rows += [off, noise * (1 / own.counts[there]).sum(), there.sum().double()]
        return torch.stack(rows)

    def with_spread(self, pooled: Tensor) -> Population:
        """With the variance between clients, from the sums of ``spread``."""
        off, noise, means = pooled.double().view(len(RIDGES), 3).T
        return self._replace(between=((off - noise) / means.clamp_min(1e-9)).clamp_min(LEAST))

    def heads(self, own: Own) -> Heads:
        """A client's head under each setting of ``GRID``."""
        weights, biases = [], []
        for k, ridge in enumerate(RIDGES):
            white = self.whitener(ridge)
            for times in BETWEEN:
                nu = self.means(own, white, times * float(self.between[k]))
                for counted, t in product(PRIORS, SCALES):
                    weights.append(t * nu @ white)
                    biases.append(self.prior(own, counted) - t * nu.square().sum(1) / 2)
        return Heads(torch.stack(weights), torch.stack(biases))


class Heads(NamedTuple):
    """Linear heads: weights [G, C, d] and biases [G, C]."""

    weight: Tensor
    bias: Tensor

    def scores(self, z: Tensor) -> Tensor:
        """Of features [n, d], [G, n, C]."""
        return (z.double().cpu() @ self.weight.mT + self.bias[:, None]).float()

    def part(self, k: int) -> Part:
        """One of them, as a model's head."""
        return Part.of({"head.weight": self.weight[k].float(), "head.bias": self.bias[k].float()})


def own_heads(z: Tensor, y: Tensor, classes: int) -> Heads:
    """A client's head by its own features [n, d] alone under each setting of ``OWN``: the
    covariance around its class means, shrunk to a multiple of I. A class of which it has no example
    stands in the middle of the others."""
    own = Own.of(z, y, classes)
    there = own.counts > 0
    off = z.double() - own.means[y]
    within = off.T @ off / max(1, len(y) - int(there.sum()))
    means = torch.where(there[:, None], own.means, own.means[there].mean(0))
    prior = ((own.counts + 1) / (own.counts.sum() + classes)).log()
    weights, biases = [], []
    for ridge in ALONE:
        white = whitener(within, ridge)
        nu = (means - means.mean(0)) @ white
        for t in SCALES:
            weights.append(t * nu @ white)
            biases.append(prior - t * nu.square().sum(1) / 2 - weights[-1] @ means.mean(0))
    return Heads(torch.stack(weights), torch.stack(biases))
