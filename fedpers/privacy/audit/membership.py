"""How well an attack tells members of a training set from others."""

from __future__ import annotations

from math import floor

import numpy as np
from numpy.typing import NDArray


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The chance that a member scores higher than a non-member, ties counting half."""
    both = np.sort(others)
    below = np.searchsorted(both, members, "left") + np.searchsorted(both, members, "right")
    return float(below.mean() / (2 * len(others)))


def tpr_at(members: NDArray[np.float64], others: NDArray[np.float64], fpr: float) -> float:
    """The share of members found at a threshold that at most ``fpr`` of non-members pass.

    Membership is to be judged where false alarms are few (Carlini et al. 2022, 2112.03570). With
    fewer than 1 / ``fpr`` non-members none of them may pass.
    """
    threshold = np.sort(others)[::-1][floor(fpr * len(others))]
    return float((members > threshold).mean())


def lira(
    target: NDArray[np.float64], shadows: NDArray[np.float64], inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The likelihood-ratio attack (Carlini et al. 2022) with few shadow models.

    Log of N(target; mean in, spread in) over N(target; mean out, spread out): means for each
    example, spreads over all of them, as that paper advises for few shadows.

    Args:
        target: [n] the audited model's confidences, log p - log(1 - p).
        shadows: [K, n] those of K models trained by the auditor.
        inside: [K, n] which examples each of them was trained on; each example by at least one,
            and not by at least one.

    Returns:
        Scores [n], higher for members.
    """

    def log_likelihood(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        count = chosen.sum(0)
        mean = np.where(chosen, shadows, 0).sum(0) / count
        # A mean over few shadows takes up some of the spread.
        free = max(int(chosen.sum()) - chosen.shape[1], 1)
        variance = np.where(chosen, (shadows - mean) ** 2, 0).sum() / free
        variance = max(float(variance), 1e-12) * (1 + 1 / count)
        return np.asarray(-0.5 * ((target - mean) ** 2 / variance + np.log(variance)))

    return log_likelihood(inside) - log_likelihood(~inside)
