"""pFedHN: a hypernetwork at the server makes each client's model from a learned embedding
(Shamsian et al., ICML 2021, arXiv 2103.04628)."""

from dataclasses import dataclass

import torch
from torch import nn

from fedpers.parts import Part, Parts
from fedpers.seeding import seeded
from strategies.base import Needs, PersonalizedStrategy


@dataclass
class Hyper:
    """Sizes of embedding and hidden layer, >= 1; the server's rate, > 0; and how far the clients'
    first models are from the model's own start, as a factor on the last layer's."""

    embedding: int = 8
    hidden: int = 32
    rate: float = 0.2
    spread: float = 0.01


class PFedHN(PersonalizedStrategy):
    """theta_k = h(v_k; phi), which client k trains; phi and v_k then go down J^T (theta_k -
    trained theta_k), the vector-Jacobian product of Algorithm 1, of a cohort the mean.

    Clients train all that they receive, as FedAvg's do. One that never took part gets the model of
    the mean embedding (the paper learns one for it, with phi as it is).
    """

    Params = Hyper
    algorithm = "fedavg"

    @classmethod
    def needs(cls, params):
        return Needs(single_updates="each client's change, which trains the hypernetwork")

    def __init__(self, config, model, data):
        super().__init__(config, model, data)
        start = torch.cat([self.parts[slot].vector for slot in self.shares])
        p, self.place = self.params, {client: k for k, client in enumerate(data.clients)}
        with seeded(config.seed, "hypernetwork"):
            self.embeddings = nn.Embedding(len(self.place), p.embedding)
            self.net = nn.Sequential(
                nn.Linear(p.embedding, p.hidden), nn.Tanh(), nn.Linear(p.hidden, len(start))
            )
        self.learned = nn.ModuleList([self.embeddings, self.net])
        with torch.no_grad():
            self.net[2].weight.mul_(p.spread)
            self.net[2].bias.copy_(start)

    def made(self, client):
        """h(v; phi) [size]: the slots' vectors, one after another."""
        v = self.embeddings.weight
        return self.net(v[self.place[client]] if client in self.place else v.mean(0))

    def broadcast(self, server_round, client):
        sizes = [self.parts[slot].layout.size for slot in self.shares]
        vectors = self.made(client).detach().split(sizes)
        row = {s: self.parts[s].like(v.clone()) for s, v in zip(self.shares, vectors, strict=True)}
        self.rows[client] = Parts(row)
        return self.rows[client]

    def refine(self, server_round):
        products = torch.zeros(())
        for client, update in self.updates.items():
            change = [self.rows[client][s].vector - update[s].vector for s in self.shares]
            products = products + self.made(client) @ torch.cat(change)
        (products / len(self.updates)).backward()
        torch.optim.SGD(self.learned.parameters(), lr=self.params.rate).step()
        self.learned.zero_grad()

    def state(self):
        parts, values = super().state()
        learned = Part.of(self.learned.state_dict())
        return parts | {"hypernetwork": Parts({"learned": learned})}, values

    def load_state(self, state):
        super().load_state(state)
        self.learned.load_state_dict(dict(state[0]["hypernetwork"]["learned"]))
