"""DFedAlt (Shi et al., ICML 2023, arXiv 2305.15157): bodies go from neighbour to
neighbour of a graph."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpers.config import Config, setting
from fedpers.data import FederatedData
from fedpers.errors import ConfigError
from fedpers.mixing import Mixing
from fedpers.seeding import seed_for
from strategies.base import Needs, PersonalizedStrategy, strategies

Edges = Collection[tuple[int, int]]


@dataclass
class DFedAltParams:
    """``topology``: who is whose neighbour: ``complete``, ``ring``, ``random:k`` (a ring, and links
    drawn anew in each round until a client has k on average), or the path of a JSON file of pairs
    of client ids."""

    topology: str = setting("random:10")


@strategies.register("dfedalt")
class DFedAlt(PersonalizedStrategy):
    """u_i <- sum over i's neighbours j and i itself of W_ij u_j, by Metropolis' weights

    W_ij = 1 / (1 + max(d_i, d_j)), W_ii = 1 - the others (symmetric, doubly stochastic);

    heads stay at home. The server stands in for the links: it relays, so it sees what a peer would
    see, and a peer nothing of a single neighbour. Its mean of all bodies is for newcomers alone.
    The paper's DFedSalt (sharpness-aware steps) is not here.
    """

    Params = DFedAltParams
    shares = ("body",)
    weights = "own"

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """A topology that can be read and holds together."""
        params, clients = super().check(config, data), sorted(data.clients)
        edges = edges_of(params.topology, clients, 0)
        if (alone := out_of_reach(len(clients), edges)) is not None:
            takes = f"a graph that is connected; no path leads to client {clients[alone]}"
            raise ConfigError("strategy.params.topology", params.topology, takes)
        return params

    @classmethod
    def needs(cls, params: Any) -> Needs:
        """A mixture for each client."""
        return Needs(rows=True)

    def mixing(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> Mixing:
        """Metropolis' weights among those who took part, and the mean."""
        clients = list(reports)
        seed = seed_for(self.config.seed, "topology", server_round)
        weights = metropolis(len(clients), edges_of(self.params.topology, clients, seed))
        mean = torch.full((1, len(clients)), 1 / len(clients))
        return Mixing(torch.cat([mean, weights]), [None, *clients])


def metropolis(count: int, edges: Edges) -> Tensor:
    """W [count, count] of Metropolis' weights on undirected edges (Xiao and Boyd 2004)."""
    degrees = [sum(i in edge for edge in edges) for i in range(count)]
    weights = torch.zeros(count, count)
    for i, j in edges:
        weights[i, j] = weights[j, i] = 1 / (1 + max(degrees[i], degrees[j]))
    return weights + torch.diag(1 - weights.sum(dim=1))


def edges_of(topology: str, clients: Sequence[str], seed: int) -> Edges:
    """The undirected edges i < j among clients, by their place.

    Raises:
        ConfigError: no topology, or a file that cannot be read.
    """
    count = len(clients)
    kind, _, degree = topology.partition(":")
    everyone = set(combinations(range(count), 2))
    ring = {edge(i, (i + 1) % count) for i in range(count)} & everyone
    if topology == "complete":
        return everyone
    if topology == "ring":
        return ring
    if kind == "random" and degree.isdecimal() and int(degree) >= 2:
        wanted = min(count * int(degree) // 2, len(everyone)) - len(ring)
        further = random.Random(seed).sample(sorted(everyone - ring), max(wanted, 0))
        return ring.union(further)
    return read_edges(Path(topology), clients)


def edge(i: int, j: int) -> tuple[int, int]:
    """The smaller first."""
    return (i, j) if i < j else (j, i)


def read_edges(path: Path, clients: Sequence[str]) -> Edges:
    """The pairs in a file, among the clients that are there."""
    key, takes = "strategy.params.topology", "complete, ring, random:k with k >= 2, or a JSON file"
    try:
        pairs = [(str(a), str(b)) for a, b in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(key, str(path), f"{takes} of pairs of client ids") from error
    place = {client: number for number, client in enumerate(clients)}
    there = [(a, b) for a, b in pairs if a != b and a in place and b in place]
    return {edge(place[a], place[b]) for a, b in there}


def out_of_reach(count: int, edges: Edges) -> int | None:
    """One that no path leads to from the first; None if the graph is connected."""
    near: dict[int, set[int]] = {i: set() for i in range(count)}
    for i, j in edges:
        near[i].add(j)
        near[j].add(i)
    seen, waiting = {0}, deque([0])
    while waiting:
        new = near[waiting.popleft()] - seen
        seen |= new
        waiting.extend(new)
    return next((i for i in range(count) if i not in seen), None)
