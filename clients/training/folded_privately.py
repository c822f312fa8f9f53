"""DP-SGD for several clients at once, without hooks: each with its own sample, noise and account.

A per-sample gradient of a Linear layer is the product of what it reads and of the gradient at what
it writes. Both are at hand after one backward pass over all clients, so that norms, clipping and
sums are batched products. Steps, draws and noise are those of
``clients.training.private_steps``, which is the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clients.training.clipping import clip_factors, without
from clients.training.folded import Group
from clients.training.optimizers import optimizer_of
from clients.training.private_steps import CHUNK_SCALARS, noise_in_update
from fedpers.errors import ClientError

ROWS = 4096  # examples of all clients in one forward pass, at most


def descend_privately(group: Group) -> tuple[list[float], list[float]]:
    """DP-SGD of a group, as ``private_steps`` runs it for one client.

    Returns:
        Each client's mean loss over its samples (not private), and the standard deviation that
        the noise gives each scalar it trains; none of the latter where it is not known (Adam).

    Raises:
        ClientError: as in ``add_clipped``.
    """
    phase, trainers, fold = group.phase, group.trainers, group.fold
    config = trainers[0].config
    privacy = config.privacy
    accounts = [trainer.account for trainer in trainers if trainer.account is not None]
    assert len(accounts) == len(trainers)
    releases = [account.phase for account in accounts]
    sizes = [len(trainer.examples) for trainer in trainers]
    draws = [
        account.sources(trainer.server_round, trainer.client, phase.name)
        for account, trainer in zip(accounts, trainers, strict=True)
    ]
    parameters = group.parameters
    given = (group.share, config, trainers[0].server_round, privacy.lr)
    optimizer = optimizer_of(phase, list(parameters.values()), *given)
    expected = [account.expected(n) for account, n in zip(accounts, sizes, strict=True)]
    divisors = torch.tensor(expected).to(group.device)
    scalars = sum(fold.layouts[slot].size for slot in parameters)
    width = max(1, min(ROWS, CHUNK_SCALARS // scalars) // len(trainers))
    total, count = torch.zeros(2, len(trainers), device=group.device)
    fold.use(group.matrices)
    for _ in range(releases[0].steps):
        optimizer.zero_grad(set_to_none=False)
        drawn = [
            release.mechanism.sample(n, source)
            for n, release, source in zip(sizes, releases, draws, strict=True)
        ]
        index, counts = group.padded(drawn)
        # Nobody's sample may hold anything; then the step is noise alone.
        for rows, counted in zip(
            torch.split(index, width, 1), torch.split(counts, width, 1), strict=True
        ):
            if rows.numel():
                losses = add_clipped(group, rows, counted, privacy.max_grad_norm)
                total += (losses.nan_to_num(0.0, 0.0, 0.0) * counted).sum(1)
                count += counted.sum(1)
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        for k, (release, source) in enumerate(zip(releases, draws, strict=True)):
            sums = [gradient[k] for gradient in gradients]
            noised = release.mechanism.noised(torch.cat(sums), privacy.max_grad_norm, source)
            for into, found in zip(sums, torch.split(noised, [*map(len, sums)]), strict=True):
                into.copy_(found)
        for gradient in gradients:
            gradient /= divisors[:, None]
        group.penalise()
        optimizer.step()
    spreads = [
        noise_in_update(optimizer, release, privacy.max_grad_norm, size)
        for release, size in zip(releases, expected, strict=True)
    ]
    known = [spread for spread in spreads if spread is not None]
    return (total / count.clamp(min=1)).cpu().tolist(), known


def add_clipped(group: Group, index: Tensor, counts: Tensor, max_grad_norm: float) -> Tensor:
    """Add to the parameters' ``grad`` the sum of each client's clipped per-sample gradients.

    Args:
        index: rows of the group's examples, [K, B].
        counts: which of them count, [K, B].

    Returns:
        The losses, [K, B].

    Raises:
        ClientError: the forward pass calls a trained layer twice.
    """
    fold, shape = group.fold, index.shape
    fold.tape = []
    losses = group.losses(index)
    products = [p for p in fold.tape if p.layer.slot in group.phase.trains]
    fold.tape = None
    if len({product.layer.weight for product in products}) < len(products):
        raise ClientError("private training in groups: a layer is called twice")
    gradients = torch.autograd.grad(losses.sum(), [product.y for product in products])
    clipped, squares = [], torch.zeros(shape, dtype=torch.float64, device=index.device)
    for product, gradient in zip(products, gradients, strict=True):
        # [K, B, places, features]: a layer may see several places (patches) of an example.
        x = product.x.detach().reshape(*shape, -1, product.x.shape[-1])
        g = gradient.reshape(*shape, -1, gradient.shape[-1])
        weight, norm = per_sample(x, g)
        squares += norm.square()
        if product.layer.bias is not None:
            squares += torch.linalg.vector_norm(g.sum(2), dim=2).double().square()
        clipped.append((product.layer, x, g, weight))
    factors = clip_factors(squares.float().sqrt(), max_grad_norm)
    odd, factors = factors == 0, factors * counts
    for layer, x, g, weight in clipped:
        g = without(odd, g)
        if weight is None:
            scaled = (g * factors[..., None, None]).flatten(1, 2)
            found = torch.bmm(scaled.mT, without(odd, x).flatten(1, 2))
        else:
            found = torch.bmm(factors.unsqueeze(1), without(odd, weight))
        _add(group, layer.slot, layer.weight, found)
        if layer.bias is not None:
            _add(group, layer.slot, layer.bias, torch.bmm(factors.unsqueeze(1), g.sum(2)))
    return losses.detach()


def per_sample(x: Tensor, g: Tensor) -> tuple[Tensor | None, Tensor]:
    """The gradients of a weight per sample [K, B, out * in], and their norms [K, B], float64.

    Args:
        x: what the layer read, [K, B, places, in].
        g: the gradient at what it wrote, [K, B, places, out].

    Returns:
        With one place the gradient is an outer product, whose norm is known without it: None then.
    """
    if x.shape[2] == 1:
        # In float64, where neither factor vanishes or overflows that the product does not.
        read, written = (
            torch.linalg.vector_norm(factor, dim=(2, 3), dtype=torch.float64) for factor in (x, g)
        )
        return None, read * written
    weight = torch.bmm(g.flatten(0, 1).mT, x.flatten(0, 1)).view(*x.shape[:2], -1)
    return weight, torch.linalg.vector_norm(weight, dim=2).double()


def _add(group: Group, slot: str, name: str, found: Tensor) -> None:
    gradient = group.parameters[slot].grad
    assert gradient is not None
    start, end, _ = group.fold.layouts[slot].spans[name]
    gradient[:, start:end] += found.flatten(1)
