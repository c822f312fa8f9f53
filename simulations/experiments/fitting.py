"""Settings that fit a table, found on its training and validation rows in seconds: a linear model
stands for what a run would train."""

from __future__ import annotations

from math import floor, log10

import torch
from torch import Tensor

from fedpers.data import Examples, FederatedData
from fedpers.outputs import Outputs
from fedpers.tasks.base import Task

MUS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # Ditto's, from models that are held together to own ones
MOST_CLIENTS, MOST_ROWS = 20, 4000
STEPS = 20  # of L-BFGS, for one model
RATE, DECAY = 0.05, 1e-3  # the rate where data do not ask for less; the weight decay


def learning_rate(data: FederatedData, batch: int) -> float:
    """A rate at which gradient descent with momentum 0.9 on batches stays stable: the inverse of
    the loss's largest curvature in a linear model, ``RATE`` at most, to one digit."""
    x = torch.cat([data.client(client).train.x for client in data.clients[:MOST_CLIENTS]])
    x = x[:MOST_ROWS].double()
    gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    largest = float(torch.linalg.eigvalsh(gram)[-1]) / len(x)
    # Of a batch: beside what all have in common, its own rows are longer.
    largest += float(x.square().sum()) / len(x) / batch
    classes = data.task.outputs > 1
    rate = min(RATE, 1 / ((0.5 if classes else 2.0) * (1 + largest)))
    digit = 10.0 ** floor(log10(rate))
    return max(1, floor(rate / digit + 1e-9)) * digit


def best_mu(data: FederatedData) -> tuple[float, float]:
    """Ditto's mu with the least loss on all validation rows together, and that loss.

    min over v_k of F_k(v_k) + mu/2 |v_k - w|^2, where w minimises the mean of F over all rows.
    """
    owned = [data.client(client) for client in data.clients[:MOST_CLIENTS]]
    owned = [own for own in owned if len(own.val) and len(own.train)]
    if not owned:
        return 1.0, float("inf")
    task = data.task
    x, y = (torch.cat([getattr(own.train, side) for own in owned]) for side in ("x", "y"))
    shared = _fitted(Examples(x, y), task, None, 0.0)
    losses = {}
    for mu in MUS:
        lost = [_loss(own.val, task, _fitted(own.train, task, shared, mu)) for own in owned]
        losses[mu] = float(torch.cat(lost).mean())
    best = min(MUS, key=losses.__getitem__)  # the first, and so the largest, of those alike
    return best, losses[best]


def _fitted(examples: Examples, task: Task, near: Tensor | None, mu: float) -> Tensor:
    """A linear model [d + 1, outputs], the last row its offsets."""
    columns = examples.x.shape[1] + 1
    start = torch.zeros(columns, task.outputs, dtype=torch.float64) if near is None else near
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        objective = _loss(examples, task, weights).mean() + DECAY / 2 * weights.square().sum()
        if near is not None:
            objective = objective + mu / 2 * (weights - near).square().sum()
        objective.backward()  # type: ignore[no-untyped-call]
        return objective

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def _loss(examples: Examples, task: Task, weights: Tensor) -> Tensor:
    scores = examples.x.double() @ weights[:-1] + weights[-1]
    return task.loss(Outputs(features=examples.x, scores=scores), examples.y)
