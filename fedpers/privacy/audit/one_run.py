"""Lower bounds on epsilon from one run, in which each canary took part by a fair coin.

Both bounds are on mu of Gaussian DP (Dong, Roth, Su 2022, 1905.02383), from which epsilon follows
at a given delta. They differ in what they take for granted:

- ``mu_by_guesses``: nothing. It refutes that *any* mechanism, whatever it is, is mu-GDP.
- ``mu_by_projection``: that what is released is a sum of the examples' contributions and of
  Gaussian noise alike in all directions. It refutes that this noise is as large, beside what one
  example contributes, as mu wants it: the mechanism that the account charges for.

The second sees more: the first has to reckon with mechanisms that tell nothing in most runs and
much about all canaries at once in a few.
"""

from __future__ import annotations

from math import floor, sqrt

import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

CONFIDENCE = 0.95
CONFIDENCE_OF_SUMS = 0.96  # the hundredth is left to what is approximate in it
SHARE = 0.25  # of the canaries are guessed at, half of them "in": fixed before anything is seen


# -- of any mechanism ------------------------------------------------------------------------


def least_probability(canaries: int, guesses: int, correct: int, mu: float, chance: float) -> float:
    """What P[W >= 0] would have to be, at least, were P[W >= correct] = ``chance`` under mu-GDP.

    W is the number of right guesses among ``guesses`` at ``canaries``. Take one canary at random
    and let x_k be the probability that it is guessed at, rightly, and W >= k; and y_k that it is
    guessed at, wrongly, and W >= k - 1. Its coin, turned over, makes one of the other, so that
    x_k <= Phi(Phi^-1(y_k) + mu) (Mahloujifar, Melis, Chaudhuri 2025, 2410.22235). With
    P_k = P[W >= k], x_k = (k P_k + P_(k+1) + ...) / m and
    y_k = ((r - k + 1) P_(k-1) - P_k - P_(k+1) - ...) / m: a lower bound on P_(k-1) that grows with
    each later P. From P_correct = chance and nothing beyond it, it leads down to P_0.

    Returns:
        A number > 1 where that cannot be.
    """
    p, later = chance, 0.0  # P_k and the sum of those after it
    for k in range(correct, 0, -1):
        x = (k * p + later) / canaries
        later += p
        p = max(p, (later + canaries * float(ndtr(ndtri(x) - mu))) / (guesses - k + 1))
        if p > 1:
            break
    return p


def mu_by_guesses(
    canaries: int, guesses: int, correct: int, confidence: float = CONFIDENCE
) -> float:
    """The largest mu (to 1e-6) such that so many right guesses refute mu-GDP at ``confidence``.

    Holds for any mechanism, any dependence between guesses, and any way to choose which canaries
    are guessed at by what was released; their number has to be fixed beforehand.

    Args:
        canaries: how many were included or left out by a fair coin each.
        guesses: for how many of them the attack said "in" or "out"; it abstains on the others.
        correct: how many guesses are right.

    Returns:
        0 where not even mu = 0 is refuted.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"audit: got {canaries} canaries, {guesses} guesses, {correct} correct; "
            "takes canaries >= guesses >= correct >= 0"
        )

    def refuted(mu: float) -> bool:
        return least_probability(canaries, guesses, correct, mu, 1 - confidence) > 1

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guess(scores: Tensor, included: Tensor, share: float = SHARE) -> tuple[int, int]:
    """How many canaries are guessed at, and how many rightly: "in" for the highest scores, "out"
    for as many of the lowest.

    Args:
        scores: [m], higher for a canary that seems to be in.
        included: [m] bool, the truth.
    """
    m, order = len(scores), scores.argsort(descending=True)
    half = floor(share * m / 2)
    right = included[order[:half]].sum() + (~included[order[m - half :]]).sum()
    return 2 * half, int(right)


def inclusion_scores(observed: Tensor, influences: Tensor) -> Tensor:
    """How much each canary seems to be in what was observed, [m] around 0.

    Of the linear model observed = influences^T (S - 1/2) + noise, S in {0, 1}: the posterior mean
    of S - 1/2. Where canaries' influences are orthogonal it orders them as the inner products
    <influence, observed> do; where they are alike it tells them apart as well as the noise allows.
    The noise is what is observed beyond the squares that the coins explain, not what is claimed.

    Args:
        observed: [d], less what is expected where the coins are not known.
        influences: [m, d]: what each canary adds to what is observed.
    """
    m, d = influences.shape
    observed = observed.to(influences)
    squares = float(influences.square().sum(dtype=torch.float64))
    noise = max(float(observed.square().sum()) - squares / 4, 0.0) / d
    small = influences @ influences.T if m <= d else influences.T @ influences
    # The variance of S is 1/4. What is added besides is below what float32 tells apart.
    small = small.double()
    small.diagonal().add_(4 * noise + 1e-6 * squares / len(small) + 1e-300)
    factor = torch.linalg.cholesky(small)
    if m <= d:
        products = (influences @ observed).double()
        return torch.cholesky_solve(products[:, None], factor)[:, 0]
    solved = torch.cholesky_solve(observed.double()[:, None], factor)[:, 0]
    return (influences @ solved.to(influences)).double()


# -- of a noised sum -------------------------------------------------------------------------


def mu_by_projection(
    observed: Tensor,
    shift: Tensor,
    influences: Tensor,
    included: Tensor,
    *,
    confidence: float = CONFIDENCE_OF_SUMS,
    hidden: int = 0,
) -> float:
    """A lower bound on mu of a noised sum, from all canaries' scores together, without guesses.

    In the spirit of Agrawal et al. 2026 (2606.12733), who take canaries' scores <influence,
    observed> to be Gaussian: the sum of the scores of those that are in, less that of the others,
    is what is observed along ``shift``. Given the coins that is |shift| plus noise of deviation s,
    and s is known from all directions beside. One canary moves the sum by mu s; coins move it by
    |shift|, which is so many times one canary's influence as the influences say, alike or not. The
    t statistic's spread is that of Johnson and Welch 1940.

    The noise is taken to be the larger of what it is in all directions and of what it is as the
    canaries see it: samples that were drawn, and whatever else was expected wrongly, lie where
    gradients lie. Either is measured, not taken from the claim.

    Args:
        observed: [d], less what is expected where the coins are not known.
        shift: [d], by how much more is expected with the coins known.
        influences: [m, d]: what each canary adds to what is observed.
        included: [m] bool, the coins.
        hidden: of the d dimensions so many hold nothing; they were projected out of all of this.

    Returns:
        0 where nothing is shown.
    """
    observed, shift = observed.double(), shift.double()
    d, length = len(observed) - hidden, float(shift.norm())
    coins = included.to(influences) - 0.5
    moved = float((coins @ influences).double().norm())
    squares = float(influences.square().sum(dtype=torch.float64))
    if length == 0 or moved == 0:
        return 0.0
    along = float(observed @ shift) / length
    rest = observed - along / length * shift
    seen = (influences @ rest.to(influences)).double()
    noise = max(float(rest.square().sum()) / (d - 1), float(seen.square().sum()) / squares) ** 0.5
    ratio = along / max(noise, 1e-9 * abs(along), 1e-300)
    least = ratio - float(ndtri(confidence)) * sqrt(1 + ratio**2 / (2 * (d - 1)))
    return max(0.0, float(least) * sqrt(squares / len(influences)) / moved)
