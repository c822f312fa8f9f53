"""Membership inference: who was trained on what, guessed from models that clients really make."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.node.host import PERSONAL, ClientHost
from clients.node.store import ClientStore
from clients.training.trainer import Trainer
from fedpers.config import Config
from fedpers.context import Context
from fedpers.outputs import Outputs
from fedpers.parts import Parts, combine
from fedpers.privacy import BudgetSpent
from fedpers.privacy.audit.membership import auc, lira, tpr_at
from fedpers.seeding import torch_generator
from fedpers.tasks.base import Task
from simulations.attacks.audited import Replaced, audited, start_over
from simulations.attacks.one_run import joined


def membership(config: Config, *, shadows: int = 4) -> dict[str, Any]:
    """Who was trained on what, guessed from models: area under the curve, and found at 1 % and at
    0.1 % false alarms.

    Each client trains on a random half of all its examples; the other half are the non-members.
    All clients take part in each round and the server averages what they send. Attacked are the
    last global model and a client's last upload, which the server sees, and its personal model,
    which nobody does; each by the loss alone, and by LiRA with as many ``shadows`` (two
    or more), trained in the same way on other halves.
    """
    runs: list[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]] = []
    with audited(config) as host:
        data = host.data
        everything = {c: data.client(c) for c in data.clients}
        pools = {c: joined(d.train, d.val, d.test) for c, d in everything.items()}
        pools = {c: pool for c, pool in pools.items() if len(pool) >= 4}
        for k in range(shadows + 1):
            # Shadows come in pairs, the second on what the first one leaves out.
            draw, other = ("target", False) if k == 0 else (f"shadow {(k - 1) // 2}", k % 2 == 0)
            inside = {c: _half(config.seed, draw, c, len(p)) ^ other for c, p in pools.items()}
            train = {c: p.take(inside[c].nonzero().view(-1)) for c, p in pools.items()}
            start_over(host, Replaced(data, train, pools))
            runs.append((torch.cat(list(inside.values())), _confidences(host)))
    members = runs[0][0].numpy()
    found: dict[str, Any] = {"members": int(members.sum()), "others": int((~members).sum())}
    for model, (loss, target) in runs[0][1].items():
        others = np.stack([run[model][1].numpy() for _, run in runs[1:]])
        chosen = np.stack([inside.numpy() for inside, _ in runs[1:]])
        attacks = {"loss": -loss.numpy(), "lira": lira(target.numpy(), others, chosen)}
        found[model] = {name: _figures(scores, members) for name, scores in attacks.items()}
    return found


def _figures(scores: NDArray[np.float64], members: NDArray[np.bool_]) -> dict[str, float]:
    both = scores[members], scores[~members]
    tprs = {f"tpr_at_{100 * fpr:g}_fpr": tpr_at(*both, fpr) for fpr in (0.01, 0.001)}
    return {"auc": auc(*both), **tprs}


def _confidences(host: ClientHost) -> dict[str, tuple[Tensor, Tensor]]:
    """Trains all clients; each model's loss and confidence on all examples, by client."""
    config, algorithm = host.config, host.algorithm
    broadcast, uploads = algorithm.declared, dict[str, Parts]()
    for server_round in range(1, config.rounds + 1):
        for client in host.data.clients:
            try:
                uploads[client], _ = host.train(client, server_round, broadcast)
            except BudgetSpent:  # its last upload stays what it was
                continue
        if algorithm.sends:
            weights = torch.full((1, len(uploads)), 1 / len(uploads))
            (broadcast,) = combine(weights, list(uploads.values()))
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for client in host.data.clients:
        split, personal = (
            host.examples.client(client),
            ClientStore(host.stores, client).load_before(PERSONAL, config.rounds + 1),
        )
        trainer = Trainer(
            config, host.model, algorithm, split.train, server_round=config.rounds, client=client
        )
        context = Context(client, config.rounds)
        received = algorithm.receive(broadcast, personal, context)
        views = {
            "global": ("global", received),
            "upload": ("global", algorithm.receive(uploads[client], personal, context)),
            "personal": ("personal", algorithm.tune(received, trainer)),
        }
        for name, (mode, working) in views.items():
            working = algorithm.recall(working, trainer)
            scores = algorithm.predict(mode, working, split.test.x, trainer, "test")
            if scores is not None:
                found.setdefault(name, []).append(_judged(host.data.task, scores, split.test.y))
    return {name: _columns(pieces) for name, pieces in found.items()}


def _judged(task: Task, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.double()
    outputs = Outputs(scores.new_zeros(len(scores), 0), scores)
    return task.loss(outputs, targets), task.confidence(scores, targets)


def _columns(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    losses, confidences = zip(*pieces, strict=True)
    return torch.cat(losses), torch.cat(confidences)


def _half(seed: int, draw: str, client: str, count: int) -> Tensor:
    order = torch.randperm(count, generator=torch_generator(seed, "audit", draw, client))
    return order < count // 2
