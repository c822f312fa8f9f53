"""What ``fedpers bench`` times of whole rounds: local training beside the loop that reference
libraries run, and messages for many clients beside one message a client.

All data are random and are written to a folder that the caller gives, so that no files are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import Message
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from clients.base import LocalAlgorithm, find_algorithm
from clients.node.client_app import app
from clients.node.dealing import deal
from clients.node.host import ClientHost
from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.models import build_model
from fedpers.models.backbones import Backbone, Stage
from fedpers.parts import Parts
from fedpers.records import pack, unpack
from simulations.backends.serial import SerialGrid, _identity

IMAGE, FEATURES, CLASSES, BATCH, LR = (1, 28, 28), 512, 10, 32, 0.005
# Examples of 20 clients, as many for training as in the split w1_20k (Dirichlet 0.1), and one more.
SIZES = tuple(
    1 + n
    for n in (
        *(42, 284, 225, 1225, 1246, 730, 975, 585, 177, 816),
        *(951, 182, 408, 1207, 1399, 1898, 782, 827, 873, 162),
    )
)
BANDWIDTHS, LAMBDA = (10.0, 15.0, 20.0, 50.0), 5.0  # FedCP's published settings


def write_data(path: Path, sizes: Sequence[int], shape: Sequence[int]) -> None:
    """Write an npz of random images of ``shape`` for clients "0000", "0001" and so on."""
    rng, total = np.random.default_rng(0), sum(sizes)
    x = rng.standard_normal((total, *shape), dtype=np.float32)
    y = np.arange(total) % CLASSES
    owner = np.repeat([f"{k:04d}" for k in range(len(sizes))], sizes)
    np.savez(path, x=x, y=y, client=owner)


def settings(path: Path, *overrides: str) -> Config:
    """A configuration over what ``write_data`` wrote, without public and validation examples."""
    data = ("data.name=npz", f"data.path={path}", "data.partition.name=natural")
    return load_config(None, [*data, "data.public_fraction=0", "data.val_fraction=0", *overrides])


class Cnn(nn.Module):
    """The CNN of FedAvg as plain modules: 582,026 parameters, in the order of ``cnn``'s parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(1024, FEATURES), nn.ReLU(inplace=True)),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def take(self, broadcast: Parts) -> None:
        """Take what the server sent."""
        copy_in(self.body, broadcast["body"].values())
        copy_in(self.head, broadcast["head"].values())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy of a batch."""
        return F.cross_entropy(self(x), y)

    def upload(self) -> list[Tensor]:
        """What the client sends."""
        return [parameter.detach().clone() for parameter in self.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        logits: Tensor = self.head(self.body(x))
        return logits


class FedCPModel(Cnn):
    """FedCP as published (2307.01217, section 4): the policy's shares are drawn in every batch, and
    the frozen extractor sees every batch again for the alignment."""

    vector: Tensor

    def __init__(self) -> None:
        super().__init__()
        wide = 2 * FEATURES
        self.policy = nn.Sequential(nn.Linear(FEATURES, wide), nn.LayerNorm(wide), nn.ReLU())
        self.frozen_body, self.frozen_head = deepcopy(self.body), deepcopy(self.head)
        self.frozen_body.requires_grad_(False)
        self.frozen_head.requires_grad_(False)
        self.register_buffer("vector", torch.zeros(FEATURES))

    def take(self, broadcast: Parts) -> None:
        """Take what the server sent: the personal head stays, its sum conditions the policy."""
        for body in (self.body, self.frozen_body):
            copy_in(body, broadcast["body"].values())
        copy_in(self.frozen_head, broadcast["head"].values())
        copy_in(self.policy, broadcast["gate"].values())
        self.vector = F.normalize(self.head.weight.detach().sum(dim=0), dim=0)

    def logits(self, features: Tensor) -> Tensor:
        """W_i (r * z) + W_g (s * z) [batch, classes]; (r, s) with Gumbel noise in training only."""
        context = features * self.vector.expand_as(features)
        scores = self.policy(context).view(-1, 2, FEATURES)
        shares = F.gumbel_softmax(scores, dim=1) if self.training else scores.softmax(dim=1)
        own, shared = self.head(shares[:, 0] * features), self.frozen_head(shares[:, 1] * features)
        total: Tensor = own + shared
        return total

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        return self.logits(self.body(x))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy + lambda MMD(f(X), f_g(X))."""
        features = self.body(x)
        return F.cross_entropy(self.logits(features), y) + LAMBDA * mmd(
            features, self.frozen_body(x)
        )

    def upload(self) -> list[Tensor]:
        """Extractor, policy, and the mean of both heads."""
        shared = [*self.body.parameters(), *self.policy.parameters()]
        pairs = zip(self.head.parameters(), self.frozen_head.parameters(), strict=True)
        mixed = [0.5 * own.detach() + 0.5 * received for own, received in pairs]
        return [*(parameter.detach().clone() for parameter in shared), *mixed]


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of x and y [n, d], with one kernel for each bandwidth."""
    xx, yy, xy = x @ x.T, y @ y.T, x @ y.T
    of_x, of_y = xx.diag().expand_as(xx), yy.diag().expand_as(yy)
    between_x, between_y = of_x.T + of_x - 2 * xx, of_y.T + of_y - 2 * yy
    across = of_x.T + of_y - 2 * xy
    total = torch.zeros_like(xx)
    for q in BANDWIDTHS:
        total = total + torch.exp(-between_x / (2 * q)) + torch.exp(-between_y / (2 * q))
        total = total - 2 * torch.exp(-across / (2 * q))
    return total.mean()


def copy_in(module: nn.Module, values: Any) -> None:
    """Copy tensors into a module's parameters, in their order."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)


MODELS: dict[str, type[Cnn]] = {"fedavg": Cnn, "fedcp": FedCPModel}


class Share:
    """Some of a configuration's clients, and what the server sends in the first round.

    Args:
        config: over data that ``write_data`` wrote.
        share, shares: which of so many hands of ``clients.node.dealing.deal`` the clients are.
    """

    def __init__(self, config: Config, share: int, shares: int) -> None:
        data, method = load_data(config), config.strategy.name
        model = build_model(config, data)
        found, params = find_algorithm(method, config, [])
        algorithm: LocalAlgorithm = found(config, model, params)
        self.broadcast = algorithm.declared
        self.clients = deal({client: data.size(client) for client in data.clients}, shares)[share]
        self.examples = [data.client(client).train for client in self.clients]


class HostRounds:
    """Our way: a ``ClientHost`` as in a node, asked as ``clients.node.client_app`` asks it.

    Args:
        folder: for what the clients keep.
        config, share, shares: as of ``Share``.
    """

    def __init__(self, config: Config, folder: Path, share: int, shares: int) -> None:
        own = Share(config, share, shares)
        self.broadcasts, self.server_round = dict.fromkeys(own.clients, own.broadcast), 0
        self.host = ClientHost(config, config.strategy.name, [], folder / "run" / "state")

    def round(self) -> dict[str, Parts]:
        """The clients' uploads; one that cannot be trained raises."""
        self.server_round += 1
        uploads = {}
        for client, answer in self.host.train_all(self.broadcasts, self.server_round).items():
            if isinstance(answer, Exception):
                raise answer
            uploads[client] = answer[0]
        return uploads


class CnnLoop:
    """The usual way, as reference libraries do it: a model and a DataLoader for each client, one
    client after another on two threads. Arguments as of ``HostRounds``."""

    def __init__(self, config: Config, folder: Path, share: int, shares: int) -> None:
        torch.set_num_threads(2)
        own, training = Share(config, share, shares), config.training
        self.broadcast, self.clients, self.lr = own.broadcast, own.clients, training.lr
        self.batch_size = training.batch_size
        self.datasets = [TensorDataset(examples.x, examples.y) for examples in own.examples]
        model = MODELS[config.strategy.name]()
        copy_in(model.head, self.broadcast["head"].values())
        self.models = [deepcopy(model) for _ in self.clients]

    def round(self) -> dict[str, list[Tensor]]:
        """The clients' uploads."""
        uploads = {}
        for client, model, dataset in zip(self.clients, self.models, self.datasets, strict=True):
            model.take(self.broadcast)
            model.train()
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=self.lr)
            for x, y in DataLoader(dataset, self.batch_size, shuffle=True):
                loss = model.loss(x, y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            uploads[client] = model.upload()
        return uploads


def cnn_config(method: str, folder: Path, sizes: Sequence[int] = SIZES) -> Config:
    """Write the data of clients that train the whole CNN for an epoch, and configure it.

    Args:
        method: fedavg or fedcp.
        sizes: examples of each client, one of which is for testing.
    """
    write_data(folder / "data.npz", sizes, IMAGE)
    return settings(
        folder / "data.npz",
        *("data.test_fraction=0.001", "model.name=cnn", "model.lora=null"),
        *(f"strategy.name={method}", f"training.batch_size={BATCH}", f"training.lr={LR}"),
    )


class TinyMlp(Backbone):
    """A hidden layer of 32 units with ReLU: with a head an MLP 64-32-10 on images of 8 x 8."""

    kinds = ("image",)
    feature_dim = 32

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.hidden = nn.Linear(prod(input_shape), 32)

    def stages(self) -> Sequence[Stage]:
        """The hidden layer, from x [batch, ...]."""
        return (Stage(("hidden",), lambda x: F.relu(self.hidden(x.flatten(1)))),)


def tiny_config(folder: Path, clients: int, rounds: int) -> Config:
    """Write the data of clients that train a tiny MLP on one batch of 10, and configure it."""
    write_data(folder / "data.npz", [11] * clients, (1, 8, 8))
    return settings(
        folder / "data.npz",
        *("data.test_fraction=0.001", "model.name=simulations.bench.rounds:TinyMlp"),
        *("model.lora=null", "strategy.name=fedavg", "training.batch_size=10"),
        *("training.fold=32", *whole_run(rounds)),
    )


class TinyLoop:
    """The usual way for tiny clients: one model, filled, trained by SGD and added to a sum, for one
    client after another on one thread. Arguments as of ``HostRounds``."""

    def __init__(self, config: Config, folder: Path, share: int, shares: int) -> None:
        torch.set_num_threads(1)
        own, self.lr = Share(config, share, shares), config.training.lr
        self.batches, self.broadcast = [(e.x, e.y) for e in own.examples], own.broadcast
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES)
        )

    def round(self) -> list[Tensor]:
        """The mean of the clients' models, all having as many examples."""
        values = [value for part in self.broadcast.values() for value in part.values()]
        parameters = list(self.model.parameters())
        optimizer = torch.optim.SGD(parameters, lr=self.lr)
        total = [torch.zeros_like(value) for value in values]
        for x, y in self.batches:
            copy_in(self.model, values)
            loss = F.cross_entropy(self.model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for summed, parameter in zip(total, parameters, strict=True):
                    summed.add_(parameter)
        return [summed / len(self.batches) for summed in total]


def whole_run(rounds: int) -> tuple[str, ...]:
    """Settings of a run that evaluates at its end only, and saves no models."""
    quiet = ("evaluation.local_baseline=false", "evaluation.outside=0", "evaluation.adapters=false")
    return (f"rounds={rounds}", f"evaluation.every={rounds}", *quiet)


def task_config(folder: Path, clients: int, rounds: int = 1) -> Config:
    """Write the data of clients with nothing to train, and configure FedAvg on them.

    One more client has the training example that data must have.
    """
    write_data(folder / "data.npz", [1] * (clients + 1), (1, 8, 8))
    split = {f"test_{k}": np.arange(k, k + (k < clients)) for k in range(clients + 1)}
    split |= {f"train_{k}": np.arange(k, k + (k == clients)) for k in range(clients + 1)}
    np.savez(folder / "split.npz", **split)  # type: ignore[arg-type]
    return settings(
        folder / "data.npz",
        *("data.partition.name=file", f"data.partition.path={folder / 'split.npz'}"),
        *("model.name=mlp", "strategy.name=fedavg", *whole_run(rounds)),
    )


class Tasks:
    """Clients that have nothing to train, asked over a ``SerialGrid``.

    A client without examples uploads what it received: what is left is the cost of asking it.

    Args:
        folder: for the data and for what the clients keep.
        clients: how many there are.
    """

    def __init__(self, folder: Path, clients: int) -> None:
        config = task_config(folder, clients)
        self.head: dict[str, Any] = {
            "settings": config.to_json(),
            "algorithm": "fedavg",
            "server_params": [],
            "run_folder": str(folder / "run"),
            "base": None,
            "round": 1,
        }
        host = ClientHost(config, "fedavg", [], folder / "run" / "state")
        self.head["schema"] = host.data.schema.to_json()
        self.clients = [client for client in host.data.clients if not host.data.size(client)]
        self.broadcast = host.algorithm.declared
        self.grids = {nodes: SerialGrid(app, nodes=nodes) for nodes in (2, clients)}

    def ask(self, nodes: int) -> list[Parts]:
        """All clients' uploads, by one message to each of so many nodes."""
        grid, uploads = self.grids[nodes], []
        with _identity(run_id=1):
            messages = []
            for k, node in enumerate(grid.get_node_ids()):
                named = self.clients[k::nodes]
                body = {**self.head, "clients": named, "rows": dict.fromkeys(named, 0)}
                content = pack([self.broadcast], body)
                messages.append(Message(content, dst_node_id=node, message_type="train"))
            for reply in grid.send_and_receive(messages):
                uploads += [row for row in unpack(reply.content)[0] if isinstance(row, Parts)]
        return uploads
