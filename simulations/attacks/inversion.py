"""Gradient inversion: an example made out of the update that a client sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients.node.host import ClientHost
from clients.training.view import fill
from fedpers.config import Config
from fedpers.context import Context
from fedpers.data import Examples
from fedpers.parts import Parts
from fedpers.privacy.audit.inversion import total_variation
from fedpers.seeding import torch_generator
from simulations.attacks.audited import Replaced, audited, start_over


def invert(config: Config, *, examples: int = 6, steps: int = 500) -> tuple[Tensor, Tensor]:
    """Examples, and what an attacker makes of the update that each of them alone gives.

    Geiping et al. 2020 (2003.14053): an input, of known target, whose gradient points where the
    update does (cosine distance) and that is smooth (total variation), by signed Adam. A
    client's whole data are one example: nothing is easier to invert.

    Args:
        config: the run's settings; private or not.
        examples: how many are tried, one for each of the first clients in turn.
        steps: of the attack.

    Returns:
        The originals and the reconstructions, both [examples, ...].
    """
    config = replace(
        config,
        model=replace(config.model, cache=False),
        privacy=replace(config.privacy, sampling_rate=1.0, delta=None),
    )
    originals, found = [], []
    with audited(config) as host:
        data = host.data
        broadcast = host.algorithm.declared
        for k in range(examples):
            client = data.clients[k % len(data.clients)]
            own = data.client(client).train
            one = own.take(torch.tensor([k // len(data.clients) % len(own)]))
            start_over(host, Replaced(data, {client: one}))
            upload, _ = host.train(client, 1, broadcast)
            originals.append(one.x)
            generator = torch_generator(config.seed, "audit", "inversion", k)
            span = float(own.x.amin()), float(own.x.amax())
            found.append(_reconstruct(host, broadcast, upload, one, span, steps, generator))
    return torch.cat(originals), torch.cat(found)


def _reconstruct(
    host: ClientHost,
    broadcast: Parts,
    upload: Parts,
    one: Examples,
    span: tuple[float, float],
    steps: int,
    generator: torch.Generator,
    smooth: float = 0.001,
) -> Tensor:
    """Of ``one`` only the shape and the target are used."""
    model, algorithm = host.model, host.algorithm
    phase = next(phase for phase in algorithm.phases() if phase.released)
    fill(model, phase.model, algorithm.receive(broadcast, Parts(), Context("", 1)))
    pairs = [
        (tensor, broadcast[slot][name] - upload[slot][name])
        for slot in upload
        for name, tensor in model.slots[slot].items()
        if isinstance(tensor, nn.Parameter)
    ]
    parameters = [parameter.requires_grad_() for parameter, _ in pairs]
    aim = torch.cat([change.reshape(-1) for _, change in pairs])
    low, high = span
    x = (torch.rand(one.x.shape, generator=generator) * (high - low) + low).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05 * (high - low))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = model.task.loss(algorithm.forward(model, x, training=True), one.y).mean()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        distance = 1 - F.cosine_similarity(gradient, aim, dim=0)
        (slope,) = torch.autograd.grad(distance + smooth * total_variation(x), [x])
        x.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach()


def save_pictures(rows: Mapping[str, Tensor], path: Path) -> None:
    """Images [n, C, H, W] as a grid, a row each of the given tensors, as PNG."""
    from matplotlib.figure import Figure

    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.2 * count + 1.2, 1.3 * len(rows)))
    axes = figure.subplots(len(rows), count, squeeze=False)
    first = next(iter(rows.values()))
    low, high = float(first.min()), float(first.max())
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            shown = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
