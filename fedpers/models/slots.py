"""Slots that methods add to the model. Server and clients build the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedpers.seeding import seeded


def compared(head: Mapping[str, Tensor]) -> Tensor:
    """What two clients' heads are compared by, float32 [rows, d]: the rows of a layer, one a class;
    of adapters the B of each (where it is sent, else A) as one row, filled up with zeros."""
    if "head.weight" in head:
        return head["head.weight"].float()
    written = [tensor for name, tensor in head.items() if name.endswith(".lora_B")]
    return pad_sequence([t.flatten() for t in written or head.values()], batch_first=True).float()


class LabelPrior(nn.Module):
    """A client's label distribution beside the population's; both uniform at first.

    Args:
        classes: number of classes C.
    """

    own: Tensor
    population: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("own", torch.full((classes,), 1 / classes))
        self.register_buffer("population", torch.full((classes,), 1 / classes))

    def forward(self) -> Tensor:
        """What to add to logits [C]: log own - log population; zero where they agree."""
        return self.own.log() - self.population.log()


class LabelShares(nn.Module):
    """A client's label shares; all alike at first.

    Args:
        classes: number of classes C.
    """

    shares: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("shares", torch.full((classes,), 1 / classes))

    def forward(self) -> Tensor:
        """The shares [C], which add up to 1."""
        return self.shares


def zero_head(features: int, scores: int) -> nn.Linear:
    """A further head that adds nothing at first."""
    head = nn.Linear(features, scores)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


class Intercepts(nn.Module):
    """One number a class to add to the logits; zero at first.

    Args:
        classes: number of classes C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self) -> Tensor:
        """What to add to logits [C]."""
        return self.bias


class PolicyGate(nn.Module):
    """FedCP's conditional policy network: how much of each feature is personal.

    Linear(d, width) -> LayerNorm -> ReLU [-> Linear(width, 2d)] -> softmax over (2, d). The
    published gate has width 2d and no second layer; a narrow ``width`` makes it a bottleneck,
    which is smaller to send and needs less noise under differential privacy.

    Args:
        features: d.
        width: of the bottleneck, or None for the published gate.
        seed: every process builds the same start.
    """

    def __init__(self, features: int, width: int | None, seed: int) -> None:
        super().__init__()
        self.features = features
        with seeded(seed, "gate"):
            inner = width or 2 * features
            layers = [nn.Linear(features, inner), nn.LayerNorm(inner), nn.ReLU()]
            if width is not None:
                layers.append(nn.Linear(width, 2 * features))
            self.network = nn.Sequential(*layers)

    def forward(self, context: Tensor, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """r (personal) and s (global), [batch, d] each, r + s = 1.

        Args:
            context: features conditioned on the client, [batch, d].
            uniform: draws in (0, 1], [batch, 2 d], of which Gumbel noise is made, as in training;
                none of it for predictions.
        """
        scores = self.network(context).view(-1, 2, self.features)
        if uniform is not None:
            gumbel = -(-uniform.clamp(1e-10, 1 - 1e-7).log()).log()
            scores = scores + gumbel.view_as(scores)
        shares = scores.softmax(dim=1)
        return shares[:, 0], shares[:, 1]


class FrozenHead(nn.Module):
    """FedCP's frozen copy of the global head, and the client vector made of the personal one.

    Args:
        head: the head whose shapes it takes.
    """

    weight: Tensor
    vector: Tensor

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros_like(head.weight))
        self.register_buffer("vector", torch.zeros(head.in_features))


class Valve(nn.Module):
    """GPFL's conditional valve, and its class embeddings.

    gamma and beta: Linear(d, d) -> ReLU -> LayerNorm each, of a condition [d].

    Args:
        features: d.
        classes: C.
        seed: every process builds the same start.
    """

    def __init__(self, features: int, classes: int, seed: int) -> None:
        super().__init__()

        def layers() -> nn.Sequential:
            return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.LayerNorm(features))

        with seeded(seed, "valve"):
            self.gamma, self.beta = layers(), layers()
            self.embeddings = nn.Parameter(torch.randn(classes, features) / features**0.5)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """ReLU((gamma(c) + 1) z + beta(c)), [batch, d]."""
        return torch.relu((self.gamma(condition) + 1) * z + self.beta(condition))


class Conditions(nn.Module):
    """What GPFL holds constant in a round: class embeddings [C, d] as received, and the general and
    the personal condition [d] made of them."""

    embeddings: Tensor
    general: Tensor
    personal: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(classes, features))
        self.register_buffer("general", torch.zeros(features))
        self.register_buffer("personal", torch.zeros(features))
