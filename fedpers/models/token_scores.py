"""What a language model says of the tokens that there are, without keeping all it says."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512  # places whose scores of all words are there at once: 96 MiB of 49,152 words
ROWS = 16  # of them, float32: 3 MiB


class TokenScores(torch.autograd.Function):
    """From hidden states to log-probabilities, through an output layer that nobody trains.

    The gradient of log p(y) = w_y h - log sum_v exp(w_v h) is w_y - sum_v p(v) w_v: it is taken
    in the forward pass, some places at a time, so that nothing of a vocabulary's size is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [m], float32, of the targets and of the likeliest words.

        Args:
            hidden: [m, d].
            weight: [words, d].
            targets: which word each is, [m].
        """
        wanted = ctx.needs_input_grad[0]
        known, top = torch.zeros(2, len(hidden), device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = F.linear(hidden[chunk], weight, bias)
            # So few rows at once stay in a core's cache, over which four passes are made.
            for first in range(0, len(logits), ROWS):
                piece = logits[first : first + ROWS]
                rows = slice(start + first, start + first + len(piece))
                shares = piece.float().log_softmax(1)
                known[rows] = shares.gather(1, targets[rows, None])[:, 0]
                top[rows] = shares.amax(1)
                if wanted:
                    piece.copy_(shares.exp_())
            if wanted:
                gradient[chunk] = weight[targets[chunk]] - logits @ weight
        if wanted:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(top)
        return known, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient at ``hidden``."""
        (gradients,) = ctx.saved_tensors
        return (grad[:, None] * gradients).to(gradients.dtype), None, None, None
