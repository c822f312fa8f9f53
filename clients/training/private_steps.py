"""DP-SGD for one released phase, by Opacus, from examples in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fedpers.errors import ClientError
from fedpers.models import PersonalModel
from fedpers.privacy import Release
from fedpers.privacy.noise import Source

CHUNK_SCALARS = 2**25  # per-sample gradients held at once: 128 MiB in float32


def private_steps(
    model: PersonalModel,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: Callable[[Tensor], Tensor],
    *,
    examples: int,
    expected: float,
    release: Release,
    max_grad_norm: float,
    after_noise: Callable[[], None],
    source: Source,
) -> float:
    """``release.steps`` steps of DP-SGD on the parameters (Abadi et al. 2016, 1607.00133).

    Each step: a sample of the examples; per-sample gradients clipped to ``max_grad_norm``; their
    sum noised by the mechanism; divided by the expected sample size. A step on an empty sample is
    noise alone.

    Args:
        model: the model that holds the parameters; every other one is frozen.
        optimizer: over exactly the parameters.
        losses: from indices [n], on the CPU, to per-sample losses [n].
        examples: how many there are; without any, all steps are noise alone.
        expected: the sample size to divide by, > 0.
        after_noise: called with the noised gradients in place, before the step: for a penalty,
            which does not touch data and must not use up the clipping norm.
        source: of the samples and of the noise.

    Returns:
        The mean loss over the sampled examples (not private).

    Raises:
        ClientError: a parameter would get no noise: DP training is set up wrongly.
    """
    from opacus.grad_sample.utils import prepare_module

    from clients.training.noised_optimizer import NoisedOptimizer

    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if held != {id(parameter) for parameter in parameters}:
        raise ClientError("private training: a trained tensor is frozen, or not the optimizer's")
    private = NoisedOptimizer(optimizer, source, release.mechanism, max_grad_norm, expected)
    chunk = max(1, CHUNK_SCALARS // sum(parameter.numel() for parameter in parameters))
    model.train()
    hooked = nn.ModuleList(_owners(model))
    hooks = prepare_module(hooked, "hooks", False, batch_first=True, loss_reduction="sum")
    # Summed where they are: no step waits for its loss.
    total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
    try:
        for _ in range(release.steps):
            drawn = release.mechanism.sample(examples, source)
            pieces = torch.split(drawn, chunk) if len(drawn) else [drawn]
            for k, piece in enumerate(pieces):
                if len(piece):
                    found = losses(piece)
                    with warnings.catch_warnings():
                        # The first trained layer's inputs need no gradient, and rightly so.
                        warnings.filterwarnings("ignore", message="Full backward hook is firing")
                        found.sum().backward()  # type: ignore[no-untyped-call]
                    total += found.detach().nan_to_num(0.0, 0.0, 0.0).sum()
                    count += len(piece)
                else:
                    for parameter in parameters:
                        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
                last = k == len(pieces) - 1
                private.signal_skip_step(do_skip=not last)
                if private.pre_step():
                    after_noise()
                    optimizer.step()
                private.zero_grad(set_to_none=True)
    finally:
        hooks.cleanup()
        model.eval()
    return float(total) / max(count, 1)


def noise_in_update(
    optimizer: torch.optim.Optimizer, release: Release, max_grad_norm: float, expected: float
) -> float | None:
    """The standard deviation that the noise of a phase gives each scalar it trains.

    A step's noise sigma C / (expected sample size) moves a scalar by lr times it, at once and,
    with momentum m, by m, m^2, ... times that in the steps after it. What later gradients make of
    it is left out. None where the step is not linear in the gradient (Adam).
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    (group,) = optimizer.param_groups
    pushes = [
        sum(group["momentum"] ** j for j in range(left)) for left in range(1, release.steps + 1)
    ]
    step = group["lr"] * release.mechanism.sigma * max_grad_norm / expected
    return float(step * sum(push**2 for push in pushes) ** 0.5)


def _owners(module: nn.Module) -> Iterator[nn.Module]:
    """The uppermost modules that hold trained tensors themselves. Opacus goes through all that it
    is given several times: for every frozen module too, that is a fifth of a small model's step."""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        yield module
    else:
        for child in module.children():
            yield from _owners(child)
