"""pFedHN (Shamsian et al. 2021, arXiv 2103.04628): a hypernetwork at the server makes each client's
model of an embedding of its own, and learns from how the client moves it."""

from dataclasses import dataclass

import torch
from torch import nn

from fedpers.parts import Part, Parts
from fedpers.seeding import seeded
from strategies.base import Needs, PersonalizedStrategy


@dataclass
class HyperNetwork:
    """The width of embeddings and of the hidden layer; the server's learning rate."""

    width: int = 8
    hidden: int = 32
    server_lr: float = 0.02


class PFedHN(PersonalizedStrategy):
    """phi <- phi + eta (d theta_i / d phi)^T (theta_i' - theta_i) with theta_i = h(v_i; phi)."""

    Params = HyperNetwork
    algorithm = "fedavg"
    weights = "equal"

    def __init__(self, config, model, data):
        super().__init__(config, model, data)
        self.start, hidden = self.parts, self.params.hidden
        size = sum(layout.size for layout in self.layouts.values())
        with seeded(config.seed, "hypernetwork"):
            layers = [nn.Linear(self.params.width, hidden), nn.ReLU(), nn.Linear(hidden, size)]
        self.learned = dict(nn.Sequential(*layers).named_parameters())
        self.net = nn.Sequential(*layers)

    @classmethod
    def needs(cls, params):
        return Needs(single_updates="how each client moves its model")

    def theta(self, client):
        """h(v_i; phi), added to where models start: what moves, moves from there."""
        if client not in self.learned:
            with seeded(self.config.seed, "embedding", client):
                self.learned[client] = nn.Parameter(torch.randn(self.params.width))
        return self.net(self.learned[client])

    def broadcast(self, server_round, client):
        sizes = [layout.size for layout in self.layouts.values()]
        moves = zip(self.start.items(), self.theta(client).detach().split(sizes), strict=True)
        self.rows[client] = Parts({n: part.like(part.vector + move) for (n, part), move in moves})
        return self.rows[client]

    def refine(self, server_round):
        for client, update in self.updates.items():
            moved = [update[n].vector - self.rows[client][n].vector for n in self.start]
            tensors = [self.learned[client], *self.net.parameters()]
            steps = torch.autograd.grad(self.theta(client), tensors, torch.cat(moved))
            with torch.no_grad():
                for tensor, step in zip(tensors, steps, strict=True):
                    tensor.add_(step, alpha=self.params.server_lr)

    def state(self):
        groups, values = super().state()
        groups["learned"] = Parts({name: Part.of({"": t}) for name, t in self.learned.items()})
        return groups, values

    def load_state(self, state):
        super().load_state(state)
        for name, part in state[0]["learned"].items():
            self.learned.setdefault(name, nn.Parameter(part[""].clone())).data.copy_(part[""])
