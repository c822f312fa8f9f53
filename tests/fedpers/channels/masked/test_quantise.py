"""Whole numbers that add: by hand, exact, without bias, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpers.channels.masked.messages import Dropped
from fedpers.channels.masked.quantise import WEIGHT, WEIGHT_BITS, Field, Layout
from fedpers.errors import ClientError, ConfigError
from fedpers.privacy.noise import Source, known, secret


def layout(clients: int = 4, bits: int = 2) -> Layout:
    return Layout([Field("body", 3, (-1.0, 2.0), bits)], clients)


def test_whole_steps_are_exact_by_hand() -> None:
    """Two bits over [-1, 2] are steps of 1: -1, 0, 2 are 0, 1, 3. What is beyond is clipped."""
    built = layout()
    found = built.quantised({"body": np.array([-1.0, 0.0, 2.0])}, 1.0, known(0)())
    assert built.integers(found, built.fields[0]).tolist() == [0, 1, 3]
    beyond = np.array([-np.inf, -5.0, np.float32(7)])
    found = built.quantised({"body": beyond}, 1.0, known(0)())
    assert built.integers(found, built.fields[0]).tolist() == [0, 0, 3]
    assert built.sums(found, 1)["body"].tolist() == [-1.0, -1.0, 2.0]


def test_bits_words_and_bytes_by_hand() -> None:
    """32 clients with 12 bits: sums up to 32 x 4095 have 17 bits, three share a word of 51 bits."""
    built = Layout([Field("body", 1000, (-1, 1), 12)], 32)
    assert built.width(built.fields[0]) == 17
    weight_bits = (32 * (2**WEIGHT_BITS - 1)).bit_length()
    assert built.words == 334 + 1
    assert built.nbytes == (334 * 51 + 7) // 8 + (2 * weight_bits + 7) // 8
    large = Layout([Field("body", 1_000_000, (-1, 1), 12)], 32)
    assert large.nbytes / 1e6 < 2.13
    assert Layout([Field("body", 1_000_000, (-1, 1), 12)], 1000).nbytes / 1e6 < 2.76


class Highest(Source):
    """Each uniform draw is the largest there is, which rounds to 1."""

    def uniform(self, count: int) -> torch.Tensor:
        return torch.ones(count, dtype=torch.float64)


def test_no_draw_rounds_beyond_the_range() -> None:
    built = layout()
    found = built.quantised({"body": np.full(3, 2.0)}, 1.0, Highest(bytes(32)))
    assert built.integers(found, built.fields[0]).tolist() == [3, 3, 3]


@given(st.floats(0, 1))
def test_the_weights_that_add_are_those_that_multiply(weight: float) -> None:
    """With as many steps as a weight has, weight times the largest value is whole."""
    built = Layout([Field("body", 1, (0.0, 1.0), WEIGHT_BITS)], 1)
    words = built.quantised({"body": np.ones(1)}, weight, Highest(bytes(32)))
    body, own = (built.integers(words, field)[0] for field in built.fields)
    assert own <= body <= own + 1 and abs(own - weight * built.fields[0].steps) <= 0.5
    drawn = {
        int(built.integers(built.quantised({"body": np.ones(1)}, weight, source), f)[0])
        for f in built.fields[:1]
        for source in [secret() for _ in range(8)]
    }
    assert drawn == {int(own)}


def test_layouts_are_told_apart_by_all_that_they_are() -> None:
    """Both sides put this into what they sign; 1 and 1.0 are one number."""
    field = Field("body", 3, (-1, 2), 8)
    assert Layout([field], 4).signed == Layout([replace(field, bound=(-1.0, 2.0))], 4).signed
    others = [
        replace(field, name="head"),
        replace(field, length=4),
        replace(field, bound=(-1, 3)),
        replace(field, bound=(-2, 2)),
        replace(field, bits=9),
        replace(field, weighted=False),
    ]
    signed = {Layout([one], 4).signed for one in (field, *others)}
    signed |= {Layout([field], 5).signed, Layout([field, others[0]], 4).signed}
    assert len(signed) == 9


def test_weights_scale_before_rounding() -> None:
    """Weight 1/2 of 3 steps above the low end is 1.5 steps: 1 or 2, as often."""
    built = layout()
    source, values = secret(), {"body": np.full(3, 2.0)}
    drawn = [built.quantised(values, 0.5, source) for _ in range(400)]
    found = np.array([built.integers(words, built.fields[0]) for words in drawn])
    assert set(found.ravel().tolist()) == {1, 2}
    assert abs(found.mean() - 1.5) < 5 * 0.5 / 1200**0.5


@settings(deadline=None, max_examples=20)
@given(st.floats(-1.2, 2.2), st.floats(0, 1), st.integers(1, 12), st.integers(0, 2**32))
def test_rounding_has_no_bias(value: float, weight: float, bits: int, seed: int) -> None:
    count = 4000
    built = Layout([Field("body", count, (-1.0, 2.0), bits)], 1)
    words = built.quantised({"body": np.full(count, value)}, weight, known(seed)("rounding"))
    sums = built.sums(words, 1)
    step = 3.0 / (2**bits - 1)
    wanted = np.clip(value, -1.0, 2.0) * sums[WEIGHT][0]
    assert abs(sums[WEIGHT][0] - weight) <= 2.0**-WEIGHT_BITS
    assert abs(sums["body"].mean() - wanted) <= 6 * step / 2 / count**0.5 + 1e-9
    assert np.abs(sums["body"] - wanted).max() <= step * (1 + 1e-9)


@settings(deadline=None)
@given(st.data())
def test_sums_of_words_are_sums_of_integers(data: st.DataObject) -> None:
    """The largest values, several parts of different bits, no carry from one into the next."""
    clients = data.draw(st.integers(1, 300))
    bits = data.draw(st.lists(st.integers(1, 32), min_size=1, max_size=4))
    fields = [Field(f"part {at}", 2 * at + 3, (0.0, 1.0), b) for at, b in enumerate(bits)]
    built = Layout(fields, clients)
    kinds = data.draw(st.integers(1, 4))
    drawn = []
    for kind in range(kinds):
        fill = data.draw(st.sampled_from([0.0, 1.0, 0.37]))
        values = {field.name: np.full(field.length, fill) for field in fields}
        drawn.append(built.quantised(values, 1.0, known(kind)()))
    times = np.array([clients // kinds] * (kinds - 1) + [clients - clients // kinds * (kinds - 1)])
    with np.errstate(over="ignore"):
        total = sum(words * np.uint64(n) for words, n in zip(drawn, times, strict=True))
    sent = built.unpacked(built.packed(total))
    for field in built.fields:
        single = [built.integers(words, field) for words in drawn]
        wanted = sum(words * np.uint64(n) for words, n in zip(single, times, strict=True))
        assert (built.integers(sent, field) == wanted).all()
    for field in fields:
        sums = built.sums(sent, clients)[field.name]
        assert sums == pytest.approx(built.integers(sent, field) / field.steps)


def test_a_weighted_mean_and_a_plain_count() -> None:
    fields = [
        Field("body", 2, (-1.0, 1.0), 16),
        Field("loss", 1, (0.0, 10.0), 16),
        Field("examples", 1, (0, 1023), 10, weighted=False),
    ]
    built = Layout(fields, 2)
    total = np.zeros(built.words, np.uint64)
    for examples, body, loss in [(100, 0.5, 2.0), (300, -0.25, 1.0)]:
        values = {"body": np.full(2, body), "loss": np.array([loss])}
        counts = {"examples": np.array([examples])}
        total += built.quantised({**values, **counts}, examples / 400, secret())
    sums = built.sums(total, 2)
    assert sums["examples"].tolist() == [400.0]
    assert sums["body"] / sums[WEIGHT] == pytest.approx(np.full(2, -0.0625), abs=1e-4)
    assert sums["loss"] / sums[WEIGHT] == pytest.approx(np.array([1.25]), abs=1e-3)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_any_float_type_gives_the_same_integers(kind: type) -> None:
    built = layout()
    found = built.quantised({"body": np.array([-1, 0.5, 2], kind)}, 1.0, known(3)())
    wanted = built.quantised({"body": np.array([-1, 0.5, 2])}, 1.0, known(3)())
    assert (found == wanted).all()


def test_what_is_not_an_update_is_refused_before_it_leaves() -> None:
    built, source = layout(), known(0)()
    good = np.zeros(3)
    for values, weight, match in [
        ({}, 1.0, "fields: got"),
        ({"body": good, "head": good}, 1.0, "fields: got"),
        ({"body": good, WEIGHT: good}, 1.0, "fields: got"),
        ({"body": np.zeros(2)}, 1.0, "shape"),
        ({"body": np.array([0, np.nan, 0])}, 1.0, "diverged"),
        ({"body": good}, 1.1, "weight"),
        ({"body": good}, float("nan"), "weight"),
    ]:
        with pytest.raises(ClientError, match=match):
            built.quantised(values, weight, source)


def test_a_sum_that_no_clients_can_have_made_is_not_taken() -> None:
    """What a client that masks garbage leaves behind is, but for luck, beyond the range."""
    built = Layout([Field("body", 300, (-1.0, 1.0), 12)], 20)
    garbage = np.random.default_rng(0).integers(0, 2**63, built.words).astype(np.uint64)
    with pytest.raises(Dropped, match="beyond that of 20 clients"):
        built.sums(garbage, 20)
    one = built.quantised({"body": np.full(300, 1.0)}, 1.0, known(0)())
    with pytest.raises(Dropped, match="beyond that of 2 clients"):
        built.sums(one * np.uint64(3), 2)
    heavy = built.quantised({"body": np.full(300, 1.0)}, 1.0, known(0)())
    heavy[-1] = 0  # whole steps under no weight
    with pytest.raises(Dropped, match="body beyond"):
        built.sums(heavy, 1)


@pytest.mark.parametrize("bound", [(0.0, 0.0), (1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)])
def test_a_range_is_two_finite_numbers_in_order(bound: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="range of body"):
        Field("body", 3, bound, 8)


def test_bits_names_and_clients_are_checked() -> None:
    for bits in (0, 33):
        with pytest.raises(ConfigError, match="bits of body"):
            Field("body", 3, (0, 1), bits)
    with pytest.raises(ConfigError, match="names that differ"):
        Layout([Field("a", 1, (0, 1), 8), Field("a", 1, (0, 1), 8)], 2)
    with pytest.raises(ConfigError, match="names that differ"):
        Layout([Field(WEIGHT, 1, (0, 1), 8)], 2)
    with pytest.raises(ConfigError, match="clients"):
        Layout([], 0)
