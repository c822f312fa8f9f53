"""The empirical-Bayes head: numbers by hand, and that it is Bayes' rule where it can be."""

from __future__ import annotations

import pytest
import torch

from fedpers.discriminant import GRID, RIDGES, Own, Population, own_heads

NOTHING = torch.zeros(len(RIDGES))


def test_a_clients_mean_is_drawn_towards_the_populations_by_hand() -> None:
    # One feature of variance 1 within: white. Means 0 and 4; the client has 3 of class 0, at 2.
    known = Population(
        torch.tensor([0.5, 0.5]), torch.tensor([[0.0], [4.0]]), torch.eye(1), NOTHING
    )
    own = Own.of(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, dtype=torch.int64), 2)
    assert own.counts.tolist() == [3, 0] and own.means[0].item() == 2
    # Between 1, noise 1/3: share 1 / (1 + 1/3) = 3/4 of 2; the class it has not stays at 4.
    nu = known.means(own, torch.eye(1).double(), 1.0)
    assert nu.flatten().tolist() == pytest.approx([1.5, 4.0])
    # 3 examples and 3 that the population's shares count for: (3 + 1.5) / 6.
    prior = known.prior(own, 3.0).exp()
    assert prior.tolist() == pytest.approx([4.5 / 6, 1.5 / 6], abs=1e-3)


def test_the_variance_between_clients_is_what_noise_does_not_explain() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, between, d = torch.zeros(2, 4), 0.5, 4
    known = Population(torch.tensor([0.5, 0.5]), mean, torch.eye(d), NOTHING)
    total = torch.zeros(3 * len(RIDGES), dtype=torch.float64)
    for _ in range(300):
        own_mean = between**0.5 * torch.randn(2, d, generator=generator)
        y = torch.arange(10) % 2
        z = own_mean[y] + torch.randn(10, d, generator=generator)
        total += known.spread(Own.of(z, y, 2))
    found = known.with_spread(total).between
    assert found.tolist() == pytest.approx([between] * len(RIDGES), rel=0.1)


def test_its_head_is_bayes_rule_for_normal_features() -> None:
    generator = torch.Generator().manual_seed(1)
    mean = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    known = Population(torch.tensor([0.3, 0.7]), mean, torch.eye(2), torch.full((3,), 1e-3))
    y = torch.arange(2000) % 2
    z = mean[y] + torch.randn(2000, 2, generator=generator)
    k = next(k for k, (g, m, a, t) in enumerate(GRID) if (g, m, t) == (0.03, 0.1, 1.0) and a == 3)
    scores = known.heads(Own.of(z, y, 2)).scores(z)[k]
    # log p(x | 0) - log p(x | 1), with equal shares: the client's own.
    exact = ((z - mean[1]).square().sum(1) - (z - mean[0]).square().sum(1)) / 2
    torch.testing.assert_close(scores[:, 0] - scores[:, 1], exact, atol=0.1, rtol=0.1)


def test_a_head_of_its_own_knows_only_its_own_and_survives_one_example() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(60) % 3
    z = 3 * torch.eye(3)[y] + torch.randn(60, 3, generator=generator)
    scores = own_heads(z, y, 3).scores(z)
    assert all(float((one.argmax(1) == y).float().mean()) > 0.8 for one in scores)
    lone = own_heads(z[:1], y[:1], 3)
    assert bool(torch.isfinite(lone.weight).all() and torch.isfinite(lone.bias).all())
    # Of the classes that it has not it says the same.
    one = lone.scores(z)[0]
    torch.testing.assert_close(one[:, 1], one[:, 2])
    assert bool((one[:, 0] > one[:, 1]).all())
