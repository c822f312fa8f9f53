"""Within a norm: each sample's gradient, for privacy by example."""

from __future__ import annotations

from torch import Tensor


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """By what gradients per sample are multiplied, of the norms' shape.

    0 where a norm is not finite, so that one sample with odd values counts for nothing and changes
    nothing for the others.

    Args:
        norms: of the samples' gradients, float32; those of which the square is beyond float32 are
            infinite.
    """
    return (max_grad_norm / (norms + 1e-6)).clamp(max=1.0).nan_to_num(0.0)


def without(left_out: Tensor, values: Tensor) -> Tensor:
    """Samples' values [..., more] with zeros for those that are ``left_out``, bool [...]: 0 times
    infinity is not 0."""
    if left_out.device.type == "cpu" and not left_out.any():  # a GPU is not waited for
        return values
    more = values.ndim - left_out.ndim
    return values.masked_fill(left_out.view(*left_out.shape, *(1,) * more), 0.0)
