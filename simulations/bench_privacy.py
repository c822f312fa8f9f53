"""What DP-SGD costs: time per step with and without it, on vit-tiny with LoRA, batch 64.

    python -m simulations.bench_privacy

Both kinds of step are timed by turns and compared by medians of processor time, which a busy
machine distorts less than the clock's. Setting up and cleaning up is counted: it weighs the more,
the fewer steps a phase has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.private_steps import private_steps
from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.models import PersonalModel, build_model
from fedpers.privacy import Release

BATCH, STEPS, REPEATS = 64, (10, 1), 60


def main() -> None:
    """Print both times and their ratio, for whole models and above the cached frozen layers."""
    torch.set_num_threads(1)
    config = load_config(None, ["model.name=vit-tiny", "data.clients=2"])
    data = load_data(config)
    x, y = data.public.x[:BATCH], data.public.y[:BATCH]
    for cached in (False, True):
        model = build_model(config, data)
        given = model.stem(x) if cached else x
        model.after_stem = cached
        name = "cached frozen layers" if cached else "whole model"
        for steps in STEPS:
            runs = plain_steps(model, given, y, steps), dp_steps(model, given, y, steps)
            plain, private = (1e3 * seconds / steps for seconds in timed(*runs))
            ratio = f"private/plain {private / plain:.2f}"
            print(f"{name}, {steps} at a time: {plain:.2f} and {private:.2f} ms, {ratio}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def timed(*runs: Callable[[], None]) -> list[float]:
    """The median seconds of processor time of each, run by turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()  # warm
    for _ in range(REPEATS):
        for run, found in zip(runs, seconds, strict=True):
            started = time.process_time()
            run()
            found.append(time.process_time() - started)
    return [median(found) for found in seconds]


def plain_steps(model: PersonalModel, x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    """So many steps of SGD on one batch, as the trainer takes them."""
    _, optimizer = trained(model)

    def run() -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(x).logits, y, reduction="none").mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def dp_steps(model: PersonalModel, x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    """So many steps of DP-SGD on the same batch, as one phase."""
    parameters, optimizer = trained(model)

    def losses(batch: Tensor) -> Tensor:
        return F.cross_entropy(model(x[batch]).logits, y[batch], reduction="none")

    def run() -> None:
        private_steps(
            model,
            parameters,
            optimizer,
            losses,
            examples=len(x),
            release=Release(1.0, 1.0, steps),
            max_grad_norm=1.0,
            after_noise=lambda: None,
            generator=torch.Generator().manual_seed(0),
        )

    return run


def trained(model: PersonalModel) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """Adapters and head, and SGD over them."""
    parameters = model.trainable(list(model.slots))
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters, torch.optim.SGD(parameters, lr=0.01)


if __name__ == "__main__":
    main()
