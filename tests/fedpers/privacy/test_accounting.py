"""Composition against Opacus' own accountant and against an independent one; calibration."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from opacus.accountants import RDPAccountant

from fedpers.privacy import Ledger, Release, epsilon_of, noise_multiplier
from fedpers.privacy.accounting import default_delta, tight_epsilon_of

DELTA = 1e-5
KINDS = ((1.1, 0.08), (0.9, 0.25))  # (sigma, q)


@pytest.fixture(scope="module")
def history() -> list[Release]:
    """What a client releases in 100 rounds, of which it sits some out."""
    rng, releases = random.Random(5), []
    for _ in range(100):
        if rng.random() < 0.6:
            sigma, rate = rng.choice(KINDS)
            releases.append(Release(sigma, rate, rng.choice((1, 3))))
    return releases


@pytest.fixture(scope="module")
def expected(history: list[Release]) -> float:
    accountant = RDPAccountant()
    for sigma, rate, steps in history:
        for _ in range(steps):
            accountant.step(noise_multiplier=sigma, sample_rate=rate)
    assert len(accountant.history) > 20  # the kinds alternate, so Opacus keeps many entries
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize("reopened", [False, True])
def test_composes_as_opacus_does_over_the_full_history(
    tmp_path: Path, history: list[Release], expected: float, reopened: bool
) -> None:
    rng, ledger = random.Random(6), Ledger(tmp_path / "ledger.json")
    for release in history:
        if reopened and rng.random() < 0.3:
            ledger = Ledger(ledger.path)
        ledger.charge([release])
    assert len(ledger.releases) == 2
    assert expected > 1
    assert abs(ledger.epsilon(DELTA) - expected) < 1e-9
    assert abs(Ledger(ledger.path).epsilon(DELTA) - expected) < 1e-9


def test_an_independent_implementation_agrees(history: list[Release]) -> None:
    dp = pytest.importorskip("dp_accounting")
    accountant = dp.rdp.RdpAccountant()
    for sigma, rate in KINDS:
        steps = sum(r.steps for r in history if r.sigma == sigma)
        event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))
        accountant.compose(event, steps)
    assert epsilon_of(history, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=0.02)


def test_rounds_add_up_where_a_new_accountant_each_round_forgets() -> None:
    # q = 32/400, sigma = 1, an epoch of 12 steps a round, 100 rounds.
    one, all_rounds = Release(1.0, 0.08, 12), Release(1.0, 0.08, 1200)
    assert epsilon_of([one] * 100, DELTA) == pytest.approx(epsilon_of([all_rounds], DELTA))
    assert epsilon_of([all_rounds], DELTA) > 5 * epsilon_of([one], DELTA)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon_of([], DELTA) == epsilon_of([Release(1.0, 0.1, 0)], DELTA) == 0


def test_one_full_gaussian_release_by_hand() -> None:
    # RDP of order a is a / (2 sigma^2); the conversion of Opacus is
    # eps = rdp + log((a - 1) / a) - (log(delta) + log(a)) / (a - 1), the least over its orders.
    from math import log

    sigma = 2.0
    orders = RDPAccountant.DEFAULT_ALPHAS
    by_hand = min(
        a / (2 * sigma**2) + log((a - 1) / a) - (log(DELTA) + log(a)) / (a - 1) for a in orders
    )
    assert epsilon_of([Release(sigma, 1.0, 1)], DELTA) == pytest.approx(by_hand, rel=1e-12)


def test_prv_is_tighter_and_no_less_than_half() -> None:
    releases = [Release(1.0, 0.1, 200)]
    bound, tight = epsilon_of(releases, DELTA), tight_epsilon_of(releases, DELTA)
    assert bound / 2 < tight < bound
    many = [Release(1.0 + k / 10, 0.1, 5) for k in range(5)]
    assert tight_epsilon_of(many, DELTA) == epsilon_of(many, DELTA)  # PRV would be slow


@pytest.mark.parametrize("share", [0, 0.25])
@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(0.5, 1e-4, 1.0, 20), (2.0, 1e-3, 0.1, 100), (8.0, 1e-5, 0.2, 7), (40.0, 1e-5, 1.0, 1)],
)
def test_sigma_is_the_smallest_that_keeps_to_epsilon(
    epsilon: float, delta: float, rate: float, steps: int, share: float
) -> None:
    beside: tuple[Release, ...] = ()
    if share:  # as counts take it that are released, too
        beside = (Release(noise_multiplier(share * epsilon, delta, 1.0, 1), 1.0, 1),)
    sigma = noise_multiplier(epsilon, delta, rate, steps, beside)
    assert epsilon_of([*beside, Release(sigma, rate, steps)], delta) <= epsilon
    assert epsilon_of([*beside, Release(0.995 * sigma, rate, steps)], delta) > epsilon
    if beside:
        assert sigma > noise_multiplier(epsilon, delta, rate, steps)


def test_an_epsilon_that_what_stands_beside_has_used_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^epsilon: got 0\.5 for 3 steps, takes more, or fewer$"):
        noise_multiplier(0.5, DELTA, 1.0, 3, (Release(1.0, 1.0, 1),))


def test_the_default_delta_is_below_one_over_n() -> None:
    for n in (*range(1, 3000), 10**4, 5 * 10**5, 10**7):
        delta = default_delta(n)
        assert 0 < delta * n < 0.5
        assert delta <= 1e-3
        assert delta > 9e-4 or delta * 10 * 2 * n >= 1 - 1e-9  # no smaller than it has to be
    assert default_delta(0) == 1e-3
