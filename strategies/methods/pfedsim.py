"""pFedSim (Tan et al. 2023, arXiv 2305.15706): bodies mixed by the similarity of classifiers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeGuard

import torch
from flwr.app import Message
from torch import Tensor

from fedpers.channels.sealed.sealed_parts import Group, SealedParts, with_groups
from fedpers.config import Config, setting
from fedpers.data import FederatedData
from fedpers.errors import ConfigError
from fedpers.models import PersonalModel
from fedpers.parts import Layout, Part, Parts, combine
from fedpers.records import Row, pack
from strategies.base import strategies
from strategies.checkpoint import State, members
from strategies.exchange import collect
from strategies.methods.fedavg import FedAvg
from strategies.mixing import Mixing
from strategies.sealing import Sealing, plain

log = logging.getLogger("fedpers")

UNIT = "unit"  # a head's rows, each of length 1
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

    Params = PFedSimParams
    mixes_rows = True
    encrypted_form = True

    def __init__(self, config: Config, model: PersonalModel, data: FederatedData) -> None:
        super().__init__(config, model, data)
        self.models: dict[str, Row] = {}
        self.sent_heads: dict[str, Tensor] = {}
        self.moves: dict[str, Tensor] = {}
        self.variances: dict[str, float] = {}

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """As the base; under encryption heads are compared as they are sent."""
        params = super().check(config, data)
        if config.encryption.enabled and params.signal != "weights":
            takes = "weights with encryption, where nobody knows a mean head to take off"
            raise ConfigError("strategy.params.signal", params.signal, takes)
        return params

    @classmethod
    def reads_updates(cls, params: PFedSimParams) -> str | None:
        """The heads, to compare them."""
        return "every client's head"

    @property
    def generalisation_rounds(self) -> int:
        """rho T, rounded down."""
        return int(self.params.rho * self.config.rounds + 1e-9)  # 0.57 * 100 is 56.99...

    def sealed_groups(self) -> list[Group]:
        """Body and head apart, as only bodies are mixed by row, and the head to be compared."""
        return [Group(("body",)), Group(("head",)), Group((UNIT,), unit=True)]

    def sealed_layout(self, name: str) -> Layout:
        """As the base; of the head's rows [classes, d]."""
        if name == UNIT:
            return Layout((("rows", dict(self.layouts["head"].shapes)["head.weight"]),))
        return super().sealed_layout(name)

    def broadcast(self, server_round: int, client: str) -> Row:
        """First the global parts; then the client's own: its mixture of bodies, and its head."""
        parts = super().broadcast(server_round, client)
        if isinstance(parts, Parts):
            self.sent_heads[client] = parts["head"]["head.weight"]
        return parts

    def broadcast_to_evaluate(self, server_round: int, client: str) -> Row:
        """The mean model: a client's personal one is the one that it has trained itself."""
        return self.parts

    def mixing(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> Mixing:
        """As FedAvg. Private clients say how much noise is in the head they sent; in the second
        stage it adds up, as each trains its own head on."""
        for client, report in reports.items():
            noise = report.get("noise")
            spread = noise.get("head") if isinstance(noise, Mapping) else None
            before = self.variances.get(client, 0.0) if client in self.rows else 0.0
            if isinstance(spread, float):
                adds_up = self.params.signal != "delta"
                self.variances[client] = (before if adds_up else 0.0) + spread**2
        return super().mixing(server_round, reports)

    def combine(self, mixing: Mixing, updates: Mapping[str, Row]) -> None:
        """The mean of all, and every client's last model."""
        super().combine(mixing, updates)
        self.models.update({c: u for c, u in updates.items() if c not in self.answers.failures})
        for client, update in updates.items():
            if isinstance(update, Parts):
                self.moves[client] = update["head"]["head.weight"] - self.sent_heads[client]

    def refine(self, server_round: int) -> None:
        """Once the generalisation is over: for every client known a mixture of bodies, and the
        head that it sent last.

        Under encryption, nodes open the inner products of their own clients' heads with the others'
        and return the weights, rounded to 0.01: the server learns those, and no head.
        """
        if server_round < self.generalisation_rounds:
            return
        clients = list(self.models)
        if self.sealing is not None:
            self._refine_sealed(self.sealing)
            return
        models = {client: plain(model) for client, model in self.models.items()}
        self.similarity = similarities(self._signal(models), self._noise(clients))
        weights = mixing_weights(self.similarity)
        bodies = combine(weights, [model.only(["body"]) for model in models.values()])
        # Copied, for a checkpoint holds both.
        heads = [model["head"].like(model["head"].vector.clone()) for model in models.values()]
        self.rows = {
            client: body | {"head": head}
            for client, body, head in zip(clients, bodies, heads, strict=True)
        }
        own = float(weights.diagonal().mean())
        log.debug("round %d: mean weight of a client's own body %.2f", server_round, own)

    def _refine_sealed(self, sealing: Sealing) -> None:
        models = {c: m for c, m in self.models.items() if isinstance(m, SealedParts)}
        rows = similar(sealing, {c: model.of([UNIT]) for c, model in models.items()})
        if not rows:
            log.warning("no node compared heads: everybody keeps its row")
            return
        weights = torch.tensor(list(rows.values()))
        weights = weights / weights.sum(dim=1, keepdim=True)
        bodies = sealing.rows(weights, list(models.values()), ["body"])
        for client, body in zip(rows, bodies, strict=True):
            self.rows[client] = with_groups(body, models[client].of(["head"]))

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
        self.moves = {client: plain(parts)["head"]["w"] for client, parts in moves.items()}
        self.variances = values["variances"]

    def _signal(self, models: Mapping[str, Parts]) -> Tensor:
        """What is compared: [clients, classes, d]."""
        if self.params.signal == "delta":
            return torch.stack([self.moves[client] for client in models])
        heads = torch.stack([model["head"]["head.weight"] for model in models.values()])
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


def similar(sealing: Sealing, units: Mapping[str, SealedParts]) -> dict[str, list[float]]:
    """For each client its weights of all clients in ``units``, in order, rounded: its own node
    opens the inner products of its unit vector with the others'.

    A client whose node does not answer gets no row.
    """
    assert sealing.cipher is not None
    clients = list(units)
    products = sealing.cipher.inner_products([unit.sealed[0] for unit in units.values()])
    pairs = {p: k for k, p in enumerate(combinations(range(len(clients)), 2))}
    asked, header = sealing.strategy.roster.by_node(clients), sealing.strategy.header()
    messages = []
    for node, hosted in asked.items():
        blobs, own = [], [clients.index(client) for client in hosted]
        for i in own:
            others = [(min(i, j), max(i, j)) for j in range(len(clients)) if j != i]
            blobs += [products[pairs[pair]].to_bytes() for pair in others]
        row = SealedParts({}, tuple(Group((), True) for _ in blobs), tuple(blobs))
        body = {**header, "clients": hosted, "places": own, "of": len(clients)}
        content = pack([row], body)
        messages.append(Message(content, dst_node_id=node, message_type="query.similarity"))
    found: dict[str, list[float]] = {}
    for node, body in collect(sealing.send(messages), asked).bodies.items():
        rows = body.get("rows")
        rows = rows if isinstance(rows, Mapping) else {}
        given = {client: rows.get(client) for client in asked[node]}
        found |= {c: row for c, row in given.items() if weighs(row, len(clients))}
    return found


def weighs(row: Any, size: int) -> TypeGuard[list[float]]:
    """Whether a node's answer is a row of weights within 0..1, of which one or more count."""
    if not isinstance(row, list) or len(row) != size:
        return False
    return all(type(w) in (int, float) and 0 <= w <= 1 for w in row) and sum(row) > 0
