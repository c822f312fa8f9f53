"""The draws that privacy rests on: their source, their distributions, and what they give away."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedpers.privacy import noise
from fedpers.privacy.noise import AHEAD, BLOCK, GRID_BITS, Source, known, secret, sources

MANY = 1 << 20
# What is drawn here is known, so that no test hangs on chance: each bound would be missed by a
# sound source once in 1,000 or less, and by these draws never.
SOUND = 1e-3


class Constant(Source):
    """Every bit is the same."""

    def __init__(self, byte: int) -> None:
        super().__init__(bytes(32))
        self.byte = byte

    def bits(self, count: int) -> bytes:
        return bytes([self.byte]) * count


# -- the stream ----------------------------------------------------------------------------------


def unrelated(first: Source, second: Source, count: int = 1 << 17) -> bool:
    """Whether two streams agree in half of their bits, at all shifts up to a block of AES."""
    one, two = (
        torch.from_numpy(np.unpackbits(np.frombuffer(source.bits(count // 8), np.uint8)))
        for source in (first, second)
    )
    agree = [float((one[: count - k] == two[k:]).double().mean()) for k in range(129)]
    return all(abs(share - 0.5) < 6 * 0.5 / (count - 128) ** 0.5 for share in agree)


def test_a_stream_is_counter_mode_under_its_key() -> None:
    # The first block is the cipher of the counter 0; NIST's known answer for a key of zeros.
    assert Source(bytes(32)).bits(16).hex() == "dc95c078a2408989ad48a21492842087"
    source = Source(bytes(32))
    pieces = b"".join(source.bits(count) for count in (1, 0, 30, 1))
    assert pieces == Source(bytes(32)).bits(32)


@pytest.mark.parametrize("shared", [range(32), range(32, 64), range(0, 64, 2), range(16, 48)])
def test_seeds_that_agree_in_32_bits_give_unrelated_streams(shared: range) -> None:
    others = [k for k in range(64) if k not in shared]
    seed = 0x9E3779B97F4A7C15
    for flips in ([others[0]], [others[-1]], others):
        other = seed ^ sum(1 << k for k in flips)
        assert seed != other and unrelated(known(seed)("a"), known(other)("a"))


def test_a_seed_beyond_64_bits_counts_as_a_whole() -> None:
    assert unrelated(known(1)("a"), known(1 + (1 << 64))("a"))


def test_a_path_has_a_stream_of_its_own() -> None:
    paths = [(), (1,), ("1",), (1, 23), (12, 3), ("a", "b"), ("ab",), ("a", "b", "")]
    streams = [known(7)(*path).bits(32) for path in paths]
    assert len(set(streams)) == len(paths)
    assert known(7)(1, "a").bits(32) == known(7)(1, "a").bits(32)
    assert unrelated(known(7)(1, "0", "local"), known(7)(1, "1", "local"))


def test_who_is_not_a_test_gets_secret_sources() -> None:
    assert sources(False, 7) is secret
    assert sources(True, 7)(1, "a").bits(32) == known(7)(1, "a").bits(32)
    assert unrelated(secret(1, "a"), secret(1, "a"))  # wrong once in 4 million


def test_keys_are_drawn_from_more_than_seeds_of_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 2^32 keys 400,000 draws would give some key twice, but for once in e^18.
    monkeypatch.setattr(noise, "Source", lambda key: key)
    keys = [secret(1, "a") for _ in range(400_000)]
    assert {len(key) for key in keys} == {32}
    assert len(set(keys)) == len(keys)
    rows = np.frombuffer(b"".join(keys[:10_000]), np.uint8).reshape(-1, 32)
    ones = np.unpackbits(rows, axis=1).mean(axis=0)  # 256 means, .005 around a half
    assert abs(ones - 0.5).max() < 0.03


# -- uniforms ------------------------------------------------------------------------------------


def test_uniforms_have_53_bits() -> None:
    drawn = known(0)().uniform(MANY)
    assert drawn.dtype == torch.float64
    small = drawn[drawn < 0.5] * 2.0**54  # odd, as half a step was added
    assert bool((small.to(torch.int64) % 2 == 1).all()) and bool((small == small.floor()).all())
    words = (small.to(torch.int64) - 1) // 2
    for place in range(52):  # each of the bits is a fair coin's
        ones = float((words >> place & 1).double().mean())
        assert abs(ones - 0.5) < 5 * 0.5 / len(words) ** 0.5


def test_uniforms_are_never_0() -> None:
    assert Constant(0x00).uniform(2).tolist() == [2.0**-54, 2.0**-54]
    assert Constant(0xFF).uniform(2).tolist() == [1.0, 1.0]


def test_uniforms_are_uniform() -> None:
    drawn = known(1)().uniform(MANY).numpy()
    assert stats.kstest(drawn, "uniform").pvalue > SOUND
    counts, _ = np.histogram(drawn, 1 << 12, (0, 1))
    assert stats.chisquare(counts).pvalue > SOUND
    pairs, _, _ = np.histogram2d(drawn[::2], drawn[1::2], 64, [[0, 1], [0, 1]])
    assert stats.chisquare(pairs.ravel()).pvalue > SOUND


# -- normals -------------------------------------------------------------------------------------


SIZES = [0, 1, 2, 3, AHEAD, AHEAD + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]


@pytest.mark.parametrize("count", SIZES)
def test_as_many_normals_as_asked_for(count: int) -> None:
    drawn = known(0)().normal(count)
    assert drawn.shape == (count,) and drawn.dtype == torch.float64
    assert bool(torch.isfinite(drawn).all()) and len(drawn.unique()) == count


def test_normals_are_normal() -> None:
    drawn = known(2)().normal(MANY)
    assert stats.kstest(drawn.numpy(), "norm").pvalue > SOUND
    # Moments 1 to 8 are 0, 1, 0, 3, 0, 15, 0, 105; a mean of x^k varies by sqrt(E x^2k / n).
    moments = [math.prod(range(k - 1, 0, -2)) * (k % 2 == 0) for k in range(17)]
    for k in range(1, 9):
        spread = ((moments[2 * k] - moments[k] ** 2) / MANY) ** 0.5
        assert abs(float((drawn**k).mean()) - moments[k]) < 4 * spread
    for lag in (1, 2, BLOCK // 2, BLOCK):  # pairs of one radius are half a block apart
        for a, b in ((drawn[:-lag], drawn[lag:]), (drawn[:-lag] ** 2 - 1, drawn[lag:] ** 2 - 1)):
            assert abs(float((a * b).mean())) < 4 * float(a.std() * b.std()) / MANY**0.5


def test_tails_are_as_long_as_a_normals() -> None:
    count, beyond = 0, dict.fromkeys((3.0, 4.0, 4.5, 5.0, 5.3), 0)
    source = known(3)()
    for _ in range(10):
        drawn = source.normal(MANY).abs()
        count += MANY
        for cut in beyond:
            beyond[cut] += int((drawn > cut).sum())
    for cut, found in beyond.items():  # 28,310 to 1.2 of them
        expected = 2 * stats.norm.sf(cut) * count
        likely = stats.poisson(expected)
        assert min(likely.cdf(found), likely.sf(found - 1)) > SOUND, (cut, found, expected)


def test_the_furthest_normal_is_beyond_float32s() -> None:
    furthest = float(Constant(0x00).normal(1))
    assert furthest == pytest.approx((2 * 54 * math.log(2)) ** 0.5)  # 8.65
    assert float(Constant(0xFF).normal(1)) == 0.0


# -- samples -------------------------------------------------------------------------------------


def test_each_example_is_drawn_by_itself() -> None:
    source, n, rate, draws = known(4)(), 50, 0.3, 4000
    drawn = torch.zeros(draws, n)
    for row in drawn:
        row[source.sample(n, rate)] = 1
    spread = (rate * (1 - rate) / draws) ** 0.5
    assert float((drawn.mean(0) - rate).abs().max()) < 4 * spread
    together = drawn.T @ drawn / draws  # of two at once .09, give or take .0045
    pairs = together[~torch.eye(n, dtype=torch.bool)]
    assert float((pairs - rate**2).abs().max()) < 5 * (rate**2 * (1 - rate**2) / draws) ** 0.5
    sizes = drawn.sum(1)
    assert float(sizes.var()) == pytest.approx(n * rate * (1 - rate), rel=0.1)


def test_all_are_drawn_at_rate_1_and_few_at_a_small_one() -> None:
    assert known(0)().sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert known(0)().sample(0, 0.5).tolist() == known(0)().sample(0, 1.0).tolist() == []
    drawn = known(0)().sample(1_000_000, 1e-5)
    assert drawn.dtype == torch.int64 and drawn.device.type == "cpu" and 2 < len(drawn) < 25


# -- noised sums ---------------------------------------------------------------------------------


def grid_of(deviation: float) -> float:
    return float(2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS))


@given(
    size=st.sampled_from([0, 1, 7, BLOCK + 1]),
    deviation=st.floats(1e-6, 1e6),
    scale=st.sampled_from([0.0, 1e-9, 1.0, 1e3]),
)
def test_a_noised_sum_lies_on_the_grid(size: int, deviation: float, scale: float) -> None:
    grid = grid_of(deviation)
    assert deviation / 2**17 < grid <= deviation / 2**16
    total = torch.linspace(-1, 1, size, dtype=torch.float64) * scale * deviation
    places = known(0)().noised(total, deviation) / grid
    assert torch.equal(places, places.round())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (3, 4, 5), (2, BLOCK)])
def test_a_noised_sum_is_what_the_sum_was(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    total = torch.ones(shape, dtype=dtype)
    before = total.clone()
    found = known(0)().noised(total, 2.0)
    assert (found.dtype, found.device, found.shape) == (total.dtype, total.device, total.shape)
    assert torch.equal(total, before)  # the sum itself is left alone
    assert torch.equal(known(0)().noised(total, 0.0), total)


def test_rows_that_lie_apart_get_noise_each() -> None:
    total = torch.arange(12.0).view(3, 4).T
    found = known(0)().noised(total, 1e-3)
    torch.testing.assert_close(found, total, atol=0.01, rtol=0)
    assert bool((found != total).all())


def test_noise_has_the_declared_spread_and_mean() -> None:
    deviation, total = 0.37, torch.full((MANY,), 5.0, dtype=torch.float64)
    added = known(5)().noised(total, deviation) - total
    assert stats.kstest(added.numpy() / deviation, "norm").pvalue > SOUND
    assert float(added.std()) == pytest.approx(deviation, rel=5 / (2 * MANY) ** 0.5)


def test_the_last_bits_tell_of_a_naive_sum_and_not_of_one_on_the_grid() -> None:
    # Near 0 a float has steps of 2^-55 and less. 0 + noise takes them all; 1 + noise has been
    # through numbers near -1, and takes multiples of 2^-53 alone: who sees finer ones knows.
    def finest(total: float, naive: bool) -> int:
        """The least k such that one of the values near 0 is an odd multiple of 2^k."""
        source, terms = known(6)(str(total)), torch.full((MANY,), total, dtype=torch.float64)
        found = terms + source.normal(MANY) if naive else source.noised(terms, 1.0)
        near = found[(found != 0) & (found.abs() < 0.25)]
        return min(k for k in range(-70, 0) if bool((near / 2.0**k % 2 == 1).any()))

    assert finest(1.0, naive=True) == -53 > finest(0.0, naive=True)
    assert finest(1.0, naive=False) == finest(0.0, naive=False) == -GRID_BITS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_share_one_grid(dtype: torch.dtype) -> None:
    # Whatever the sums, results leave the same remainders equally often.
    totals = [0.0, 0.1, 1.0, 1 / 3, 2.0**-40, math.pi]
    counts = []
    for total in totals:
        found = known(7)(str(total)).noised(torch.full((MANY,), total, dtype=dtype), 1.0)
        places = (found.double() * 2**GRID_BITS).to(torch.int64)
        assert torch.equal(places.double() / 2**GRID_BITS, found.double())
        counts.append(torch.bincount(places % 256, minlength=256).numpy())
    for one, two in itertools.combinations(counts, 2):
        assert stats.chi2_contingency([one, two]).pvalue > SOUND / 15


@given(st.lists(st.integers(0, 300) | st.sampled_from([AHEAD - 1, AHEAD, AHEAD + 1]), max_size=5))
def test_no_two_draws_of_a_source_are_the_same(sizes: list[int]) -> None:
    source = known(8)()  # those that are drawn ahead are handed out once
    drawn = [value for size in sizes for value in source.normal(size).tolist()]
    assert len(set(drawn)) == len(drawn)


def test_a_source_keeps_nothing_of_what_it_witnesses() -> None:
    source, other = known(0)(), known(0)()
    source.witness([torch.ones(3, 2)], torch.ones(3))
    assert source.bits(32) == other.bits(32)
