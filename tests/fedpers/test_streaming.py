"""A mean of what comes one after another: by hand, in any order, and without keeping it."""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from functools import cache
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpers.parts import Part, Parts, combine
from fedpers.streaming import BLOCK, StreamingMean

SIZE = 5


@cache
def parts_of(seed: int, dtype: torch.dtype = torch.float32) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    return Parts(
        {
            "body": Part.of({"w": torch.randn(SIZE, generator=generator)}),
            "head": Part.of({"w": torch.randn(2, 1, generator=generator).to(dtype)}),
        }
    )


def filled(value: float) -> Parts:
    return Parts({"body": Part.of({"w": torch.full((2,), float(value))})})


def mean_of(
    order: Sequence[int], weights: Sequence[float], updates: Sequence[Parts | None]
) -> Parts:
    """Fed in ``order``; who is None is left out."""
    layouts = next(update.layouts for update in updates if update is not None)
    mean = StreamingMean(layouts, len(updates))
    for position in order:
        update = updates[position]
        if update is None:
            mean.leave_out(position)
        else:
            mean.add(position, weights[position], update)
    return mean.result()


def test_a_mean_by_hand() -> None:
    # (1 * 1 + 2 * 4 + 5 * 0.5) / 8
    for order in permutations(range(4)):
        found = mean_of(order, [1, 2, 9, 5], [filled(1), filled(4), None, filled(0.5)])
        assert found["body"].vector.tolist() == [11.5 / 8] * 2


def test_a_mean_of_several_blocks_by_hand() -> None:
    # Values 0, 1, ... weighed by themselves: the sum of squares over the sum.
    size = 2 * BLOCK + 9
    updates = [filled(k) for k in range(size)]
    found = mean_of(range(size), range(size), updates)["body"].vector.tolist()
    assert found == [pytest.approx((2 * size - 1) / 3, rel=1e-6)] * 2


def test_weights_of_zero_count_alike_only_among_themselves() -> None:
    size = 2 * BLOCK
    updates = [filled(1 if k < BLOCK else 3) for k in range(size)]
    assert mean_of(range(size), [0] * size, updates)["body"].vector.tolist() == [2.0, 2.0]
    for block, value in ((0, 1.0), (1, 3.0)):  # the other block weighs nothing
        weights = [7 if k // BLOCK == block else 0 for k in range(size)]
        for order in (range(size), range(size - 1, -1, -1)):
            assert mean_of(order, weights, updates)["body"].vector.tolist() == [value, value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, BLOCK])
def test_one_block_is_what_combine_gives_bit_for_bit(size: int, dtype: torch.dtype) -> None:
    updates = [parts_of(seed, dtype) for seed in range(size)]
    weights = torch.tensor([float(3 * k + 1) for k in range(size)])
    (expected,) = combine((weights / weights.sum())[None], updates)
    assert mean_of(range(size), weights.tolist(), updates).digest() == expected.digest()
    zero = parts_of(0)
    zero = Parts({n: p.like(torch.full_like(p.vector, -0.0)) for n, p in zero.items()})
    (expected,) = combine(torch.ones(1, 1), [zero])
    assert mean_of([0], [3.0], [zero]).digest() == expected.digest()


@given(
    size=st.integers(1, 3 * BLOCK + 5),
    heaviest=st.sampled_from([0, 1, 10**6]),
    present=st.floats(0, 1),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=settings().max_examples // 2)
def test_the_order_of_arrival_does_not_move_a_bit(
    size: int, heaviest: int, present: float, rng: random.Random
) -> None:
    weights = [rng.randint(0, heaviest) for _ in range(size)]
    there = {k for k in range(size) if rng.random() < present} | {rng.randrange(size)}
    updates = [parts_of(k) if k in there else None for k in range(size)]
    expected = mean_of(range(size), weights, updates)
    for told in (range(size), sorted(there)):  # the second time nothing is heard of the others
        order = rng.sample(told, len(told))
        assert mean_of(order, weights, updates).digest() == expected.digest()
    shares = torch.tensor([float(weights[k]) for k in sorted(there)], dtype=torch.float64)
    shares = shares / shares.sum() if shares.sum() > 0 else torch.full_like(shares, 1 / len(shares))
    for name, part in expected.items():
        matrix = torch.stack([parts_of(k)[name].vector.double() for k in sorted(there)])
        torch.testing.assert_close(part.vector.double(), shares @ matrix, atol=1e-6, rtol=0)


def test_updates_are_dropped_as_soon_as_their_block_is_complete() -> None:
    size, big = 2000, 100_000
    layouts = Parts({"body": Part.of({"w": torch.zeros(big)})}).layouts
    mean, dropped, most = StreamingMean(layouts, size + 1), list[int](), 0
    for position in range(size):
        part = Part.of({"w": torch.full((big,), float(position))})
        weakref.finalize(part.vector, dropped.append, position)
        mean.add(position, 1.0, Parts({"body": part}))
        del part
        alive = position + 1 - len(dropped)
        most = max(most, alive)
        assert mean.held == alive == (position + 1) % BLOCK
    assert most == BLOCK - 1 and mean.held == size % BLOCK
    assert mean.result()["body"].vector[:2].tolist() == [999.5, 999.5]


def test_a_block_waits_for_the_one_that_is_not_known_yet() -> None:
    mean = StreamingMean(filled(0).layouts, 3 * BLOCK)
    for position in range(1, 3 * BLOCK):
        mean.add(position, 1.0, filled(position))
    assert mean.held == BLOCK - 1  # the later blocks are mixed, and wait for the first's sum
    mean.leave_out(0)
    assert mean.held == 0
    assert mean.result()["body"].vector.tolist() == [3 * BLOCK / 2] * 2


def test_who_watches_sees_each_block_once_in_the_order_of_positions() -> None:
    seen: list[tuple[list[float], list[float]]] = []

    def watch(weights: torch.Tensor, updates: Sequence[Parts]) -> None:
        values = [float(update["body"].vector[0]) for update in updates]
        seen.append((weights.tolist(), values))

    mean = StreamingMean(filled(0).layouts, BLOCK + 3, watch)
    for position in (BLOCK + 2, BLOCK):
        mean.add(position, 1.0 + 2 * (position == BLOCK), filled(position))
    mean.result()  # of the first block nobody came
    assert seen == [([0.75, 0.25], [BLOCK, BLOCK + 2])]


def test_a_position_is_known_once() -> None:
    mean = StreamingMean(filled(0).layouts, 3)
    mean.add(1, 1.0, filled(1))
    for position in (1, 3, -1):
        with pytest.raises(ValueError, match=f"position: got {position}, takes one that is not"):
            mean.add(position, 1.0, filled(9))
        with pytest.raises(ValueError, match=f"position: got {position}"):
            mean.leave_out(position)
    assert mean.result()["body"].vector.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="got 0"):
        mean.leave_out(0)


def test_a_mean_of_nothing_is_refused() -> None:
    mean = StreamingMean(filled(0).layouts, 2)
    mean.leave_out(0)
    with pytest.raises(ValueError, match="mean: got no update"):
        mean.result()
