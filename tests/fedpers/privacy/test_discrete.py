"""Draws of discrete Gaussians: exact, from a source's bits alone."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from scipy.stats import chi2

from fedpers.privacy import discrete
from fedpers.privacy.discrete import discrete_gaussian
from fedpers.privacy.noise import Source, known, secret


def probabilities(variance: int, far: int) -> np.ndarray:
    """Of -far..far, by the definition."""
    k = np.arange(-far, far + 1, dtype=np.float64)
    weights = np.exp(-(k**2) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize("variance", [16, 37, 1000, 10**6])
def test_each_integer_is_as_likely_as_it_should_be(variance: int) -> None:
    count, far = 400_000, int(12 * variance**0.5)
    drawn = discrete_gaussian(variance, count, known(3)(variance))
    edges = np.linspace(-4, 4, 41) * variance**0.5
    expected = count * np.bincount(
        np.searchsorted(edges, np.arange(-far, far + 1)), probabilities(variance, far), 42
    )
    found = np.bincount(np.searchsorted(edges, drawn), minlength=42)
    many = expected > 5
    statistic = ((found - expected)[many] ** 2 / expected[many]).sum()
    assert chi2.sf(statistic, many.sum() - 1) > 1e-3
    assert drawn.dtype == np.int64 and len(drawn) == count


def test_single_integers_are_as_likely_as_they_should_be() -> None:
    count = 400_000
    drawn = discrete_gaussian(16, count, known(1)("single"))
    for k, chance in zip(range(-6, 7), probabilities(16, 60)[54:67], strict=True):
        spread = (count * chance * (1 - chance)) ** 0.5
        assert abs((drawn == k).sum() - count * chance) < 4.5 * spread


def test_large_variances_have_the_spread() -> None:
    for variance in (3 * 10**9, 2**60, 2**88):
        drawn = discrete_gaussian(variance, 100_000, known(2)(variance)).astype(np.float64)
        assert drawn.std() == pytest.approx(variance**0.5, rel=0.01)
        assert abs(drawn.mean()) < 5 * variance**0.5 / 100_000**0.5


def test_where_floats_cannot_tell_digits_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Had each candidate been too close to call, the same would have been kept."""
    usual = discrete._accepted(1000, 3000, known(7)("x"))
    asked = []
    decided = discrete._decided

    def noted(*told: object) -> bool:
        asked.append(told)
        return decided(*told)  # type: ignore[arg-type]

    monkeypatch.setattr(discrete, "_decided", noted)
    assert np.array_equal(discrete._accepted(1000, 3000, known(7)("x")), usual) and not asked
    monkeypatch.setattr(discrete, "CLOSE", 2.0)
    assert np.array_equal(discrete._accepted(1000, 3000, known(7)("x")), usual)
    assert len(asked) > 2000


class Bits(Source):
    """A source that gives one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def bits(self, count: int) -> bytes:
        return self.number.to_bytes(count, "big")


def test_more_bits_decide_between_neighbouring_numbers() -> None:
    getcontext().prec = 80
    chance = (-Decimal(9) / 32).exp() * 3 / 4
    whole = int(chance * 2**192)
    word, rest = divmod(whole, 2**128)
    told = word, 3, 4, 3, 16
    assert discrete._decided(*told, Bits(rest - 2**8))
    assert not discrete._decided(*told, Bits(rest + 2**8))


@pytest.mark.parametrize("variance", [0, 15, 2**88 + 1])
def test_other_variances_are_refused(variance: int) -> None:
    with pytest.raises(ValueError, match=rf"^variance: got {variance}, takes 16 to "):
        discrete_gaussian(variance, 1, secret("x"))


def test_weights_are_never_below_what_they_have_to_be() -> None:
    for variance in (16, 17, 999, 2**40 + 1):
        bits, until, scale, weights = discrete._buckets(variance)
        getcontext().prec = 50
        for k, weight in enumerate(weights):
            assert weight >= scale * (-Decimal((k << bits) ** 2) / (2 * variance)).exp()
        assert len(weights) << bits >= 14 * math.isqrt(variance) and until[-1] <= 2**62
