"""Opacus' optimizer with a mechanism's noise. Opacus takes seconds to import, so that this is
imported where a private phase begins."""

from __future__ import annotations

import torch
from opacus.optimizers import DPOptimizer

from clients.training.clipping import clip_factors, without
from fedpers.privacy import Mechanism
from fedpers.privacy.noise import Source


class NoisedOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer, with the noise of a mechanism.

    Args:
        optimizer: that takes the step.
        source: of the noise; told of the gradients per sample.
        mechanism: that noises the sum of the clipped gradients.
        max_grad_norm: C, to which each sample's gradient is clipped.
        expected: sample size, by which the noised sum is divided.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        source: Source,
        mechanism: Mechanism,
        max_grad_norm: float,
        expected: float,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.sigma,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected,
        )
        self.source, self.mechanism = source, mechanism

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients of the samples at hand to each parameter's ``summed_grad``."""
        rows = self.grad_samples
        norms = torch.stack([row.flatten(1).norm(dim=1) for row in rows], dim=1).norm(dim=1)
        factors = clip_factors(norms, self.max_grad_norm)
        odd = factors == 0
        rows = [without(odd, row) for row in rows]
        self.source.witness(rows, factors)
        for parameter, row in zip(self.params, rows, strict=True):
            clipped = torch.einsum("i,i...", factors, row)
            if parameter.summed_grad is None:
                parameter.summed_grad = clipped
            else:
                parameter.summed_grad += clipped

    def add_noise(self) -> None:
        """Set each parameter's ``grad`` to what may be released of its sum."""
        sums = torch.cat([parameter.summed_grad.flatten() for parameter in self.params])
        noised = self.mechanism.noised(sums, self.max_grad_norm, self.source)
        sizes = [parameter.numel() for parameter in self.params]
        for parameter, gradient in zip(self.params, torch.split(noised, sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
