"""The audit's bounds on the shipped mechanism itself: DP-SGD's real steps and noise, on examples
whose gradients are known, and a claim that is exact."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.training.private_steps import private_steps
from fedpers.models import PersonalModel
from fedpers.privacy import Gaussian, Release
from fedpers.privacy.audit.one_run import (
    guess,
    inclusion_scores,
    mu_by_guesses,
    mu_by_projection,
)
from fedpers.privacy.gdp import epsilon_at, mu_at
from fedpers.privacy.noise import Source, known

DELTA, STEPS, OWN = 1e-5, 2, 20
by_guesses = lru_cache(mu_by_guesses)


def released(examples: Tensor, sigma: float, source: Source) -> Tensor:
    """The mean over all steps of the noised sums [d] that are released of some examples [n, d].

    A linear loss: the gradient of each example is the example itself, of any norm >= 1.
    """
    head = nn.Linear(examples.shape[1], 1, bias=False)
    nn.init.zeros_(head.weight)
    model = PersonalModel(nn.Identity(), head)
    private_steps(
        model,
        [head.weight],
        torch.optim.SGD([head.weight], lr=1.0),
        lambda batch: model(examples[batch]).scores[:, 0],
        examples=len(examples),
        expected=len(examples),
        release=Release(Gaussian(sigma, 1.0), STEPS),
        max_grad_norm=1.0,
        after_noise=lambda: None,
        source=source,
    )
    return -head.weight.detach()[0] * len(examples) / STEPS


def bounds(claim: float, canaries: int, runs: int, wrong: float = 1.0) -> tuple[Tensor, Tensor]:
    """Lower bounds on epsilon [runs], of noised sums and of any mechanism; ``wrong`` times the
    noise that the claim takes."""
    sigma = wrong * sqrt(STEPS) / mu_at(claim, DELTA)
    d = canaries + 100
    directions, own = torch.eye(canaries, d), torch.eye(OWN, d)  # some of them lie on canaries
    coins, sources = torch.Generator().manual_seed(0), known(0)
    found = []
    for run in range(runs):
        included = torch.rand(canaries, generator=coins) < 0.5
        examples = torch.cat([own, 3 * directions[included]])
        observed = released(examples, sigma, sources(run)) - own.sum(0) - directions.sum(0) / 2
        shift = (included.float() - 0.5) @ directions
        projected = mu_by_projection(observed, shift, directions, included)
        guesses, correct = guess(inclusion_scores(observed, directions), included)
        both = projected, by_guesses(canaries, guesses, correct)
        found.append([epsilon_at(least, DELTA) for least in both])
    of_sums, of_any = torch.tensor(found).T
    return of_sums, of_any


def test_the_bound_is_near_its_claim() -> None:
    of_sums, of_any = bounds(8, 200, 60)
    assert of_sums.mean() >= 5.5 and of_any.mean() > 3
    assert int((torch.maximum(of_sums, of_any) > 8).sum()) <= 6  # 2.4 are expected
    assert bounds(1, 1000, 20)[0].mean() >= 0.45


def test_half_the_noise_and_no_clipping_show() -> None:
    half, _ = bounds(8, 200, 10, wrong=0.5)
    assert half.min() > 12
    assert bounds(1, 1000, 5, wrong=0.5)[0].min() > 1


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "canaries", "least"), [(1, 1000, 0.5), (8, 200, 5.5)])
def test_a_thousand_sound_runs(claim: float, canaries: int, least: float) -> None:
    """At most one in twenty is accused, by either bound."""
    of_sums, of_any = bounds(claim, canaries, 1000)
    over = int((torch.maximum(of_sums, of_any) > claim).sum())
    print(
        f"claim {claim}, {canaries} canaries: mean {of_sums.mean():.2f}, median "
        f"{of_sums.median():.2f}, of any {of_any.mean():.2f}, above the claim {over} of 1000"
    )
    assert of_sums.mean() >= least and of_sums.median() >= least
    assert over <= 50
    assert np.quantile(of_sums, 0.05) > 0
