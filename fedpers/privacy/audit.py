"""The arithmetic of a privacy audit: what an attack's success proves about epsilon.

An audit tries to break a guarantee. What it gets is a lower bound: a build whose bound lies above
the epsilon that it claims is broken; one whose bound lies below is not thereby proved sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CONFIDENCE = 0.95
SHARES = (0.1, 0.4, 0.8)  # of the canaries that are guessed at: all are tried, and paid for


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The chance, at most, of so many correct guesses against an (epsilon, delta)-DP training.

    Theorem 5.2 of Steinke, Nasr, Jagielski 2023 (2305.08846): each canary is in with probability
    1/2; with q = 1 / (1 + e^-epsilon) and B ~ Binomial(guesses, q) the chance is at most
    P[B >= correct] + 2 canaries delta max_i P[correct > B >= correct - i] / i. Adding or removing
    one example is the unit, as everywhere here.

    Args:
        canaries: how many were included or left out by a fair coin each.
        guesses: for how many of them the attack said "in" or "out"; it abstains on the others.
        correct: how many guesses are right; 0 <= correct <= guesses <= canaries.
        epsilon: >= 0.
        delta: in [0, 1].

    Raises:
        ValueError: the numbers do not fit together.
    """
    from scipy.stats import binom

    if not 0 <= correct <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(
            f"audit: got {canaries} canaries, {guesses} guesses, {correct} correct, epsilon "
            f"{epsilon:g}, delta {delta:g}; takes canaries >= guesses >= correct >= 0"
        )
    rate = 1 / (1 + exp(-epsilon))
    p = float(binom.sf(correct - 1, guesses, rate))
    if delta and correct:
        i = np.arange(1, correct + 1)
        below = np.cumsum(binom.pmf(correct - i, guesses, rate))
        p += float((below / i).max()) * 2 * canaries * delta
    return min(p, 1.0)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon (to 1e-6) that so many correct guesses refute at ``confidence``.

    0 if not even epsilon = 0 is refuted. Arguments as in ``p_value``.
    """

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Bound:
    """What guesses at canaries proved: ``epsilon`` at least, at 95% confidence."""

    epsilon: float
    canaries: int
    guesses: int
    correct: int


def bound_by_scores(scores: Tensor, included: Tensor, delta: float) -> Bound:
    """The best bound from the most extreme scores: "in" for the highest, "out" for the lowest.

    How many guesses are best depends on the noise. Three shares of the canaries, fixed
    beforehand, are tried, each at a third of the error that 95% confidence allows (Bonferroni).

    Args:
        scores: [m], higher for a canary that seems to be in.
        included: [m] bool, the truth.
        delta: of the guarantee.
    """
    m, order = len(scores), scores.argsort(descending=True)
    bounds = []
    for share in SHARES:
        half = floor(share * m / 2)
        highest, lowest = order[:half], order[m - half :]
        correct = int(included[highest].sum() + (~included[lowest]).sum())
        confidence = 1 - (1 - CONFIDENCE) / len(SHARES)
        epsilon = epsilon_lower_bound(m, 2 * half, correct, delta, confidence)
        bounds.append(Bound(epsilon, m, 2 * half, correct))
    return max(bounds, key=lambda bound: bound.epsilon)


def inclusion_scores(observed: Tensor, influences: Tensor) -> Tensor:
    """How much each canary seems to be in what was observed, [m] around 0.

    Of the linear model observed = influences^T (S - 1/2) + noise, S in {0, 1}: the posterior mean
    of S - 1/2. Where canaries' influences are orthogonal it orders them as the inner products
    <influence, observed> do; where they are alike it tells them apart as well as the noise
    allows. The noise is taken from what is observed where no influence reaches, not from what is
    claimed of it.

    Args:
        observed: [d].
        influences: [m, d], m < d: what each canary adds to what is observed.

    Raises:
        ValueError: no fewer canaries than dimensions.
    """
    m, d = influences.shape
    if m >= d:
        raise ValueError(f"audit: got {m} canaries in {d} dimensions, takes fewer canaries")
    influences, observed = influences.double(), observed.double()
    values, vectors = torch.linalg.eigh(influences @ influences.T)
    along = vectors.T @ (influences @ observed)
    seen = values > 1e-10 * values.max().clamp_min(1e-300)
    rest = observed.square().sum() - (along[seen].square() / values[seen]).sum()
    noise = rest.clamp_min(0) / (d - int(seen.sum()))
    shrunk = torch.zeros_like(along)
    shrunk[seen] = along[seen] / (values[seen] + 4 * noise)  # the variance of S is 1/4
    scores: Tensor = vectors @ shrunk
    return scores


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The chance that a member scores higher than a non-member, ties counting half."""
    both = np.sort(others)
    below = np.searchsorted(both, members, "left") + np.searchsorted(both, members, "right")
    return float(below.mean() / (2 * len(others)))


def tpr_at(members: NDArray[np.float64], others: NDArray[np.float64], fpr: float = 0.01) -> float:
    """The share of members found at a threshold that at most ``fpr`` of non-members pass.

    Membership is to be judged where false alarms are few (Carlini et al. 2022, 2112.03570).
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


def psnr(original: Tensor, found: Tensor, width: float) -> float:
    """Peak signal-to-noise ratio in dB of a reconstruction; ``width`` is the range of values."""
    error = float((original - found).square().mean())
    return 10 * float(np.log10(width**2 / max(error, 1e-12)))


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute differences of neighbours along the axes of x [n, C, ...] after the second."""
    differences: Sequence[Tensor] = [x.diff(dim=axis).abs().mean() for axis in range(2, x.ndim)]
    return torch.stack([*differences, x.new_zeros(())]).sum()
