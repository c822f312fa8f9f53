"""Statistics of windows of a signal: the features that a linear model takes."""

from __future__ import annotations

import torch
from torch import Tensor

QUANTILES = (0.1, 0.5, 0.9)
SLOW = slice(1, 4)  # of the periods in a window


def statistics(x: Tensor) -> Tensor:
    """Of each channel of windows [n, channels, time] 11 numbers, [n, 11 channels]: mean, standard
    deviation, least and most, three quantiles, the mean change from one moment to the next and from
    the mean, the share of slow periods in the variance, and how alike neighbours in time are."""
    x = x.double()
    mean = x.mean(2, keepdim=True)
    off = x - mean
    power = torch.fft.rfft(off, dim=2).abs().square()
    variance = off.square().sum(2).clamp_min(1e-12)
    found = [
        *(mean.squeeze(2), variance.div(x.shape[2]).sqrt(), x.amin(2), x.amax(2)),
        *torch.quantile(x, torch.tensor(QUANTILES, dtype=x.dtype), dim=2),
        *(x.diff(dim=2).abs().mean(2), off.abs().mean(2)),
        power[..., SLOW].sum(2) / power.sum(2).clamp_min(1e-12),
        (off[..., 1:] * off[..., :-1]).sum(2) / variance,
    ]
    return torch.cat(found, 1).float()
