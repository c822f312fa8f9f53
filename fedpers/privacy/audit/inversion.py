"""How like the original a reconstructed example is, and how smooth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def psnr(original: Tensor, found: Tensor, width: float) -> float:
    """Peak signal-to-noise ratio in dB of a reconstruction; ``width`` is the range of values."""
    error = float((original - found).square().mean())
    return 10 * float(np.log10(width**2 / max(error, 1e-12)))


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute differences of neighbours along the axes of x [n, C, ...] after the second."""
    differences: Sequence[Tensor] = [x.diff(dim=axis).abs().mean() for axis in range(2, x.ndim)]
    return torch.stack([*differences, x.new_zeros(())]).sum()
