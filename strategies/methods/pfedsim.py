"""pFedSim (Tan et al. 2023, arXiv 2305.15706): bodies mixed by the similarity of classifiers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpers.channels.base import State
from fedpers.config import Config, setting
from fedpers.data import FederatedData
from fedpers.models import PersonalModel
from fedpers.models.slots import compared
from fedpers.parts import Part, Parts
from fedpers.records import Row, in_the_clear
from strategies.base import Needs, strategies
from strategies.checkpoint import members
from strategies.methods.fedavg import FedAvg

log = logging.getLogger("fedpers")

CLOSEST = 0.9999  # a client's similarity to itself, and the most that any pair gets


@dataclass
class PFedSimParams:
    """``rho``: the share of the rounds that generalise, before the rest personalise.

    ``signal``: what is compared between two clients' heads: their ``weights`` (the paper), their
    change since the last broadcast (``delta``), or their difference from the mean head
    (``centred``). Weights all start at one global head and stay much alike; ``centred`` tells
    clients apart best.
    """

    rho: float = setting(0.5, above=0, most=1)
    signal: str = setting("weights", choices=("weights", "delta", "centred"))


@strategies.register("pfedsim")
class PFedSim(FedAvg):
    """Rounds t <= rho T: FedAvg. After them each client gets a body of its own and keeps its head:

    phi_i = sum_j a_ij phi_j, a_ij = -ln(1 - s_ij) / sum_j -ln(1 - s_ij), s_ii = 0.9999,

    where s_ij is the mean over classes of the cosine of the two heads' rows, or 0 if negative.

    Unlike the published code, which compares only clients of the same round, every stored head is
    compared with every other; similarities are clamped below 1; and the mean of all models is
    kept up, for clients that are new.
    """

    Params: ClassVar[type] = PFedSimParams
    mixes: ClassVar[tuple[str, ...]] = ("body",)
    """The slots of which each client gets a mixture; it gets back its own of the others."""

    def __init__(self, config: Config, model: PersonalModel, data: FederatedData) -> None:
        super().__init__(config, model, data)
        self.models: dict[str, Row] = {}
        self.sent_heads: dict[str, Tensor] = {}
        self.moves: dict[str, Tensor] = {}
        self.variances: dict[str, float] = {}

    @classmethod
    def needs(cls, params: PFedSimParams) -> Needs:
        """The heads, to compare them as they are sent, and mixtures for single clients; for the
        other signals the heads themselves."""
        if params.signal == "weights":
            return Needs(rows=True, compares="head")
        read = "every client's head, to take another off"
        instead = "set strategy.params.signal=weights"
        return Needs(rows=True, compares="head", single_updates=read, instead=instead)

    @property
    def generalisation_rounds(self) -> int:
        """rho T, rounded down."""
        return int(self.params.rho * self.config.rounds + 1e-9)  # 0.57 * 100 is 56.99...

    def broadcast(self, server_round: int, client: str) -> Row:
        """First the global parts; then the client's own: its mixture of bodies, and its head."""
        parts = super().broadcast(server_round, client)
        if self.params.signal == "delta":
            self.sent_heads[client] = compared(in_the_clear(parts)["head"])
        return parts

    def broadcast_to_evaluate(self, server_round: int, client: str) -> Row:
        """The mean model: a client's personal one is the one that it has trained itself."""
        return self.parts

    def refine(self, server_round: int) -> None:
        """Keep every client's last model; once the generalisation is over, for every client known a
        mixture of bodies, and the head that it sent last.

        Where the server cannot read them, nodes compare their own clients' heads with the others'
        and return the weights, rounded to 0.01: the server learns those, and no head.
        """
        self._note()
        if server_round < self.generalisation_rounds:
            return
        found = self.channel.compare(self.models, self._weights)
        if not found:
            log.warning("no node compared heads: everybody keeps its row")
            return
        weights, models = torch.stack(list(found.values())), list(self.models.values())
        mixed = self.channel.mix_slots(weights, models, list(self.mixes))
        own = [slot for slot in self.shares if slot not in self.mixes]
        for client, row in zip(found, mixed, strict=True):
            self.rows[client] = self.channel.join(row, self.models[client], own) if own else row

    def _note(self) -> None:
        """What is known of the round's clients. Private ones say how much noise is in the head they
        sent; in the second stage it adds up, as each trains its own head on."""
        adds_up = self.params.signal != "delta"
        for client, report in self.reported.items():
            noise = report.get("noise")
            spread = noise.get("head") if isinstance(noise, Mapping) else None
            before = self.variances.get(client, 0.0) if client in self.rows else 0.0
            if isinstance(spread, float):
                self.variances[client] = (before if adds_up else 0.0) + spread**2
        self.models.update(self.updates)
        if self.params.signal == "delta":
            for client, update in self.updates.items():
                head = compared(in_the_clear(update)["head"])
                self.moves[client] = head - self.sent_heads[client]

    def _weights(self, models: Mapping[str, Parts]) -> Tensor:
        """A [K, K] of all models, where the server can read them."""
        self.similarity = similarities(self._signal(models), self._noise(list(models)))
        weights = mixing_weights(self.similarity)
        own = float(weights.diagonal().mean())
        log.debug("mean weight of a client's own body %.2f", own)
        return weights

    def state(self) -> State:
        """Every client's last model, and what the similarities are made of."""
        groups, values = super().state()
        groups |= {f"model {client}": parts for client, parts in self.models.items()}
        groups |= {f"move {c}": Parts({"head": Part.of({"w": m})}) for c, m in self.moves.items()}
        return groups, {**values, "variances": self.variances}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` returned."""
        super().load_state(state)
        groups, values = state
        self.models = members(groups, "model")
        moves = members(groups, "move")
        self.moves = {client: in_the_clear(parts)["head"]["w"] for client, parts in moves.items()}
        self.variances = values["variances"]

    def _signal(self, models: Mapping[str, Parts]) -> Tensor:
        """What is compared: [clients, classes, d]."""
        if self.params.signal == "delta":
            return torch.stack([self.moves[client] for client in models])
        heads = torch.stack([compared(model["head"]) for model in models.values()])
        if self.params.signal == "centred":
            return heads - heads.mean(dim=0)
        return heads

    def _noise(self, clients: list[str]) -> Tensor | None:
        """The covariance [clients, clients] of the noise in one scalar of what is compared."""
        if not all(client in self.variances for client in clients):
            return None
        noise = torch.diag(torch.tensor([self.variances[client] for client in clients]))
        if self.params.signal == "centred":  # the mean's noise is in all of them
            centring = torch.eye(len(clients)) - 1 / len(clients)
            noise = centring @ noise @ centring
        return noise


def similarities(heads: Tensor, noise: Tensor | None = None) -> Tensor:
    """S [K, K] from heads [K, classes, d]: mean over classes of the rows' cosine, within 0..0.9999.

    Noise makes rows longer and so all cosines smaller: |w + noise|^2 is |w|^2 + d v in the mean.
    Where its covariance over the clients is known it is taken off the inner products first.

    A row of zeros, or one that does not stand out of its noise (by the spread of |noise|^2, which
    is v sqrt(2 d)), has cosine 0 with every other. The diagonal is 0.9999.

    Args:
        noise: the covariance [K, K] of the noise in any one scalar of the heads.
    """
    rows, d = heads.float().transpose(0, 1), heads.shape[2]
    products, least = rows @ rows.transpose(1, 2), torch.zeros(len(heads))
    if noise is not None:
        products, least = products - d * noise, (2 * d) ** 0.5 * noise.diagonal()
    power = products.diagonal(dim1=1, dim2=2)
    scale = torch.where(power > least, power, torch.inf).rsqrt()
    cosines = products * scale[:, :, None] * scale[:, None, :]
    return cosines.mean(dim=0).clamp(0, CLOSEST).fill_diagonal_(CLOSEST)


def mixing_weights(similarity: Tensor) -> Tensor:
    """A [K, K]: a_ij = -ln(1 - s_ij), each row divided by its sum."""
    weights = -torch.log1p(-similarity)
    return weights / weights.sum(dim=1, keepdim=True)
