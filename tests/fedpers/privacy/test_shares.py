"""Changes as integers, and the account of their noised sums, recomputed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from fedpers.errors import ClientError, ConfigError
from fedpers.privacy import Gaussian, Release, epsilon_of
from fedpers.privacy.gdp import log_delta
from fedpers.privacy.noise import Source, known, secret
from fedpers.privacy.shares import Shares, honest_of


def test_by_hand() -> None:
    shares = Shares(size=100, norm=2.0, bits=10, sigma=1.5, honest=4)
    assert shares.steps == 511
    assert shares.bound == 511**2 + 25 + 511 + 5  # K^2 + d/4 + K + sqrt(d)/2
    assert shares.variance == 147_188  # (2.25 * 261,662 + 9) / 4, rounded up
    assert shares.reach(6) == 6 * 511 + 9398  # 10 sqrt(6 * 147,188) = 9,397.4
    assert shares.changes(np.array([511, -1022])).tolist() == [2.0, -4.0]
    assert [honest_of(share, 7) for share in (0.01, 0.5, 1.0)] == [1, 4, 7]


# -- the integers ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(1, 300), st.floats(0.01, 100), st.integers(13, 32), st.floats(0, 3), st.integers(0)
)
def test_no_change_is_longer_than_the_bound(
    size: int, norm: float, bits: int, length: float, seed: int
) -> None:
    shares = Shares(size, norm, bits, 1.0, 2)
    change = known(seed)("change").normal(size).numpy()
    change *= length * norm / max(float(np.linalg.norm(change)), 1e-30)
    found = shares.rounded(change, known(seed)("rounding"))
    assert sum(int(z) ** 2 for z in found) <= shares.bound <= (1.01 * shares.steps) ** 2
    shorter = change / max(1.0, float(np.linalg.norm(change)) / norm)
    assert np.abs(shares.changes(found) - shorter).max() <= norm / shares.steps * (1 + 1e-6)


def test_rounding_is_right_in_the_mean_and_zero_stays_zero() -> None:
    shares, source = Shares(4, 1.0, 8, 1.0, 1), secret("x")
    change = np.array([0.1, -0.2, 0.003, 0.0])
    found = np.mean([shares.rounded(change, source) for _ in range(4000)], axis=0)
    # The spread of one is 1/2 at most, in steps of 1/127.
    assert np.abs(found - 127 * change).max() < 5 * 0.5 / 4000**0.5
    assert found[3] == 0


class Upwards(Source):
    """One whose uniform numbers round all up."""

    def __init__(self) -> None:
        self.asked = 0

    def uniform(self, count: int) -> torch.Tensor:
        self.asked += 1
        return torch.full((count,), 1 - 2.0**-20, dtype=torch.float64)


def test_what_always_rounds_beyond_the_bound_is_cut_towards_zero_in_the_end() -> None:
    shares = Shares(1024, 1.0, 9, 1.0, 1)  # K is 255, B^2 is 65,552
    change = np.zeros(1024)
    change[:512] = 512**-0.5  # 11.27 steps each; 12 of them would be 73,728 together
    source = Upwards()
    assert set(shares.rounded(change, source).tolist()) == {0, 11}
    assert source.asked == 64
    assert not shares.allows(np.where(change > 0, 12, 0))
    usual = shares.rounded(change, secret("x"))
    assert set(usual.tolist()) == {0, 11, 12} and shares.allows(usual)


def test_the_norm_is_one_of_integers_however_large() -> None:
    shares = Shares(2, 1.0, 32, 1.0, 1)
    root = math.isqrt(shares.bound)
    assert shares.allows(np.array([root, 0])) and not shares.allows(np.array([root + 1, 0]))
    assert not shares.allows(np.array([2**62, 2**62]))  # whose squares overflow to 0


@pytest.mark.parametrize("wrong", [np.array([np.nan, 0]), np.array([np.inf, 0]), np.zeros(3)])
def test_what_is_no_change_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ClientError, match=r"^change: got "):
        Shares(2, 1.0, 16, 1.0, 1).noised(wrong, secret("x"))


@pytest.mark.parametrize("size", [10, 1802, 100_000, 10**7])
def test_a_step_so_coarse_that_rounding_would_count_is_refused_with_the_cure(size: int) -> None:
    line = rf"^encryption\.masks\.bits: got 3, takes (\d+) or more for {size} values, so that round"
    with pytest.raises(ConfigError, match=line) as refused:
        Shares(size, 1.0, 3, 4.0, 10)
    least = int(str(refused.value).split("takes ")[1].split()[0])
    assert Shares(size, 1.0, least, 4.0, 10).bits == least  # the cure is one
    steps = 2 ** (least - 2) - 1  # of one bit less
    assert steps**2 + size / 4 + steps > (1.01 * steps) ** 2


def test_noise_that_would_not_hide_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bits: got 8, takes 17 or more for 10 values, .* grid$"):
        Shares(10, 1.0, 8, 1e-3, 100)
    with pytest.raises(
        ConfigError, match=r"^privacy\.epsilon: got 'noise of 1e-12', takes a noise"
    ):
        Shares(10, 1.0, 8, 1e-12, 100)


# -- the account -----------------------------------------------------------------------------------


def distribution(shares: Shares, clients: int, far: int) -> np.ndarray:
    """Of the sum of so many shares, on -far..far: convolved, not derived."""
    k = np.arange(-far, far + 1, dtype=np.float64)
    one = np.exp(-(k**2) / (2 * shares.variance))
    one /= one.sum()
    found = one
    for _ in range(clients - 1):
        found = np.convolve(found, one)[far:-far]
    return found


def harm(first: np.ndarray, second: np.ndarray, epsilon: float) -> float:
    """The least delta: sum (P - e^epsilon Q)+."""
    return float(np.maximum(first - math.exp(epsilon) * second, 0).sum())


@pytest.mark.parametrize(("sigma", "honest"), [(0.3, 1), (0.5, 3), (2.0, 5)])
def test_one_value_costs_what_a_gaussian_does(sigma: float, honest: int) -> None:
    shares = Shares(1, 1.0, 7, sigma, honest)
    moved, far = math.isqrt(shares.bound), 1200 + int(600 * sigma)
    noise = distribution(shares, honest, far)
    with_it, without = noise[:-moved], noise[moved:]
    for epsilon in (0.0, 0.5, 1.0, 2.0, 4.0):
        found, claimed = harm(with_it, without, epsilon), math.exp(log_delta(epsilon, 1 / sigma))
        assert found <= claimed * (1 + 1e-9)
        assert found > 0.8 * claimed or claimed < 1e-8  # nor is it a loose one
        assert harm(without, with_it, epsilon) <= claimed * (1 + 1e-9)


@pytest.mark.parametrize("moved", [(87, 0), (62, 62), (5, 87), (-40, 77)])
def test_two_values_cost_no_more_whatever_the_direction(moved: tuple[int, int]) -> None:
    shares = Shares(2, 1.0, 8, 0.4, 2)
    assert shares.allows(np.array(moved))
    a, b = (abs(x) for x in moved)
    noise = distribution(shares, 2, 700)
    first = np.outer(noise[a:], noise[b:])
    second = np.outer(noise[: len(noise) - a], noise[: len(noise) - b])
    for epsilon in (0.0, 1.0, 3.0):
        assert harm(first, second, epsilon) <= math.exp(log_delta(epsilon, 2.5)) * (1 + 1e-9)


@pytest.mark.parametrize(("sigma", "rounds"), [(1.0, 1), (3.0, 20), (8.0, 100)])
def test_the_composed_epsilon_is_what_dp_accounting_has_for_the_discrete_noise(
    sigma: float, rounds: int
) -> None:
    shares = Shares(1802, 0.5, 14, sigma, 12)
    deviation = math.sqrt(12 * shares.variance)
    one = from_discrete_gaussian_mechanism(deviation, sensitivity=math.isqrt(shares.bound))
    independent = one.self_compose(rounds).get_epsilon_for_delta(1e-5)
    charged = epsilon_of([Release(Gaussian(sigma, 1.0), rounds)], 1e-5)
    assert charged == pytest.approx(independent, rel=0.01)


def test_skellam_noise_of_the_same_variance_would_be_charged_more() -> None:
    """Agarwal et al. 2021, theorem 3.5, and the conversion of Canonne, Kamath and Steinke 2020."""
    shares, rounds, delta = Shares(1802, 0.5, 14, 3.0, 12), 20, 1e-5
    variance, l2, l1 = 12 * shares.variance, shares.bound, 1802**0.5 * shares.bound**0.5
    found = []
    for a in range(2, 200):
        more = min(((2 * a - 1) * l2 + 6 * l1) / (4 * variance**2), 1.5 * l1 / variance)
        renyi = rounds * (a * l2 / (2 * variance) + more)
        found.append(renyi + math.log1p(-1 / a) - math.log(delta * a) / (a - 1))
    charged = epsilon_of([Release(Gaussian(3.0, 1.0), rounds)], delta)
    assert charged < min(found) < 1.15 * charged


def test_more_who_answer_are_more_noise_and_fewer_less() -> None:
    shares = Shares(20_000, 1.0, 16, 1.5, 3)
    for answered in (1, 3, 6):
        sums = sum(shares.noised(np.zeros(20_000), secret("x")) for _ in range(answered))
        spread = float(shares.changes(np.asarray(sums)).std())
        assert spread == pytest.approx(1.5 * (answered / 3) ** 0.5, rel=0.03)


def told_apart(shares: Shares, draws: int, delta: float) -> float:
    """A lower bound of epsilon, wrong once in a thousand: by the best test of whether one client
    is in sums of the others' noise."""
    own = np.array([-60, 70, 50, 70])  # of a squared length of 15,900; B^2 is 16,258
    assert shares.allows(own)
    source = secret("audit")

    def sums() -> np.ndarray:
        noise = [shares.noised(np.zeros(4), source) for _ in range(shares.honest)]
        return np.sum(noise, axis=0)

    without = np.array([sums() for _ in range(draws)]) @ own
    with_it = np.array([sums() + own for _ in range(draws)]) @ own
    found = []
    for cut in np.quantile(without, (0.9, 0.97, 0.99, 0.995)):
        hits, alarms = int((with_it > cut).sum()), int((without > cut).sum())
        least = beta.ppf(1e-4, hits, draws - hits + 1)
        most = beta.ppf(1 - 1e-4, alarms + 1, draws - alarms)
        found.append(math.log(max(least - delta, 1e-30) / most))
    return max(found)


def test_a_client_is_found_in_noised_sums_no_better_than_claimed_and_with_less_noise_is() -> None:
    delta, sigma = 1e-3, 2.0
    claimed = epsilon_of([Release(Gaussian(sigma, 1.0), 1)], delta)  # 1.4
    assert 0.2 * claimed < told_apart(Shares(4, 1.0, 8, sigma, 3), 4000, delta) <= claimed
    assert told_apart(Shares(4, 1.0, 8, sigma / 4, 3), 4000, delta) > claimed
