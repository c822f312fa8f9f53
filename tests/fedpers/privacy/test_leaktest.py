"""The leak test's own arithmetic: what it lets pass, and what it finds, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedpers.parts import Part, Parts
from fedpers.privacy import Gaussian, Release
from fedpers.privacy.leaktest import Said, Transcript, covers, difference, unpaid
from fedpers.privacy.listener import listening, sketch

PATH = (1, "ann", "local training")


def step(
    transcript: Transcript,
    rows: Sequence[Sequence[float]],
    *,
    bound: float = 1.0,
    sigma: float = 0.5,
    beside: float = 0.0,
    path: tuple[int | str, ...] = PATH,
) -> Tensor:
    """A step on gradients [n, d], each clipped to ``bound``; what is released."""
    source, gradients = listening(transcript)(*path), torch.tensor(rows)
    factors = (bound / gradients.norm(dim=1)).clamp_max(1)
    source.witness([gradients], factors)
    return source.noised(factors @ gradients + beside, sigma * bound)


ROWS = [[3.0, 4.0], [0.3, 0.4], [0.0, 0.5]]


def compared(
    rows: Sequence[Sequence[float]], changed: int | None = 0, **more: float
) -> tuple[Transcript, Tensor, Tensor]:
    before = Transcript()
    first = step(before, ROWS)
    after = Transcript(before, {"ann": changed})
    return after, first, step(after, rows, **more)


def test_the_replaced_example_may_be_anything_and_the_release_is_the_same() -> None:
    for row in ([-7.0, 1.0], [0.0, 0.0], [1e30, -1e30]):
        after, first, second = compared([row, *ROWS[1:]])
        assert torch.equal(first, second)
        assert after.findings == []


@pytest.mark.parametrize("moved", [1e-2, 1e-4])
def test_another_examples_gradient_may_not_move(moved: float) -> None:
    after, _, _ = compared([[-7.0, 1.0], [0.3 + moved, 0.4], ROWS[2]])
    (finding,) = after.findings
    assert finding.where == "'local training' of client ann in round 1"
    assert finding.what.startswith("other examples' gradients move by ")
    still, _, _ = compared([[-7.0, 1.0], [0.3 + 1e-7, 0.4], ROWS[2]])
    assert still.findings == []


def test_its_length_beyond_the_bound_counts_too() -> None:
    """Clipped, (3, 4) and (6, 8) are the same, but of other data they would not be."""
    after, _, _ = compared([[6.0, 8.0], *ROWS[1:]], changed=1)
    (finding,) = after.findings
    assert finding.what == "other examples' gradients move by 0.8 of themselves"


def test_an_example_that_is_not_trained_on_moves_nothing() -> None:
    after, _, _ = compared(ROWS, changed=None)
    assert after.findings == []
    after, _, _ = compared([[3.0, 4.5], *ROWS[1:]], changed=None)
    assert len(after.findings) == 1


def test_an_example_may_be_away() -> None:
    before = Transcript()
    step(before, ROWS)
    after = Transcript(before, {"ann": 2})
    assert torch.equal(step(after, ROWS[:2]), before.noised[PATH][0].released)
    assert after.findings == []


def test_a_sum_holds_its_rows_and_nothing_else() -> None:
    before = Transcript()
    step(before, ROWS, beside=0.25)
    assert before.findings[0].what == "a noised sum holds 0.25 beside what each example adds"
    bare = Transcript()
    listening(bare)(*PATH).noised(torch.ones(2), 1.0)
    assert "it is not shown what each example adds" in bare.findings[0].what


def test_number_shape_and_noise_of_releases_must_agree() -> None:
    after, _, _ = compared(ROWS, sigma=0.25)
    assert after.findings[0].what == "the noise's deviation moves from 0.5 to 0.25"
    after, _, _ = compared([[*row, 0.0] for row in ROWS])
    assert after.findings[0].what == "a sum of (2,) becomes one of (3,)"
    after, _, _ = compared(ROWS[:2])
    assert after.findings[0].what == "other examples are sampled"
    after, _, _ = compared(ROWS)
    step(after, ROWS)
    assert after.findings[0].what == "there is a release more"
    before = Transcript()
    step(before, ROWS)
    nothing = Transcript(before)
    nothing.finish({})
    assert [finding.what for finding in nothing.findings] == ["there is a release less"]


def test_pieces_of_a_step_and_samples_are_followed() -> None:
    before = Transcript()
    for transcript in (before, Transcript(before, {"ann": 3})):
        source = listening(transcript)(*PATH)
        drawn = source.sample(5, 1.0)
        rows = torch.arange(10.0).view(5, 2)
        rows[3] += 0.0 if transcript is before else 9.0
        for piece in torch.split(drawn, 2):
            source.witness([rows[piece], rows[piece, :1]], torch.ones(len(piece)))
        total = torch.cat([rows.sum(0), rows[:, :1].sum(0)])
        released = source.noised(total, 1.0)
        assert transcript.findings == []
        assert torch.equal(released, before.noised[PATH][0].released)
    again = Transcript(before, {"ann": 2})
    source = listening(again)(*PATH)
    source.sample(5, 1.0)
    source.witness([rows, rows[:, :1]], torch.ones(5))
    source.noised(total, 1.0)
    assert len(again.findings) == 1  # it is example 3 that moved


def test_an_empty_sample_is_a_release_of_noise_alone() -> None:
    transcript = Transcript()
    source = listening(transcript)(*PATH)
    source.witness([torch.zeros(0, 40), torch.zeros(0, 2)], torch.ones(0))
    source.noised(torch.zeros(42), 1.0)
    (found,) = transcript.noised[PATH]
    assert transcript.findings == [] and found.rows.shape == (0, 16) and found.norm == 0


def test_the_same_draws_in_both_worlds() -> None:
    one, other = listening(Transcript())(*PATH), listening(Transcript())(*PATH)
    assert torch.equal(one.sample(100, 0.5), other.sample(100, 0.5))
    assert torch.equal(one.normal(9), other.normal(9))
    assert not torch.equal(one.normal(9), listening(Transcript())(2, *PATH[1:]).normal(9))


def test_a_group_has_the_sums_of_single_clients() -> None:
    before = Transcript()
    step(before, ROWS)
    total = torch.tensor([0.6 + 0.3, 0.8 + 0.4 + 0.5])
    for shift, found in ((1e-6, 0), (0.1, 1)):
        folded = Transcript(before, folded=True)
        listening(folded)(*PATH).noised(total + shift, 0.5)
        assert len(folded.findings) == found


# -- answers -------------------------------------------------------------------------------------


def said(values: list[float], **words: object) -> Said:
    return Said("train", 2, "ann", Parts({"head": Part.of({"w": torch.tensor(values)})}), words)


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (said([1.0]), said([1.0]), None),
        (said([1.0, 2.0]), said([1.0, 2.5]), "part 'head' moves by 0.5, in 1 of 2 values"),
        (said([0.0]), said([-0.0]), "part 'head' moves by 0, in 0 of 1 values"),
        (said([float("nan")]), said([float("nan")]), None),
        (said([0.0]), said([float("nan")]), "part 'head' moves by inf, in 1 of 1 values"),
        (said([1.0]), said([1.0, 2.0]), "what is sent changes from head (1 float32) to head (2 "),
        (
            said([1.0], reports={"ann": {"sigma": 1.0}}),
            said([1.0], reports={"ann": {"sigma": 2.0}}),
            "reports.ann.sigma changes from 1.0 to 2.0",
        ),
        (
            said([1.0], failures={}),
            said([1.0], failures={"a": "x"}),
            "failures.a changes from null",
        ),
        (said([1.0], loss=float("nan")), said([1.0], loss=float("nan")), None),
    ],
)
def test_what_moved_of_an_answer(one: Said, other: Said, what: str | None) -> None:
    found = difference(one, other, 0.0)
    assert found == what if what is None else str(found).startswith(what)


def test_answers_more_and_less_are_found() -> None:
    before = Transcript()
    before.say(said([1.0]))
    more, less = Transcript(before), Transcript(before)
    more.say(said([1.0]))
    more.say(said([1.0]))
    less.finish({})
    assert more.findings[0].what == "there is an answer more"
    assert less.findings[0].what == "there is an answer less"
    assert less.findings[0].where == "the answer of client ann to 'train' in round 2"


# -- the account ---------------------------------------------------------------------------------


def test_a_release_is_covered_by_no_less_noise_and_no_lower_rate() -> None:
    transcript = Transcript()
    step(transcript, ROWS, bound=2.0, sigma=3.0)
    (found,) = transcript.noised[PATH]
    assert found.norm == pytest.approx(2.0) and found.deviation == 6.0
    assert covers(Release(Gaussian(3.0, 1.0), 1), found, 2.0)
    assert covers(Release(Gaussian(2.9, 1.0), 1), found, 2.0)
    assert not covers(Release(Gaussian(3.1, 1.0), 1), found, 2.0)
    assert not covers(Release(Gaussian(3.0, 0.5), 1), found, 2.0)  # all examples were used
    assert not covers(Release(Gaussian(3.0, 1.0), 1), found, 1.0)  # a row is longer than that


def test_each_step_is_paid_once() -> None:
    transcript = Transcript()
    for _ in range(3):
        step(transcript, ROWS)
    half = Gaussian(0.5, 1.0)
    unpaid(transcript, {"ann": [Release(half, 3)]}, 1.0)
    assert transcript.findings == []
    unpaid(
        transcript,
        {"ann": [Release(half, 2)], "bob": [Release(half, 9)]},
        1.0,
    )
    (finding,) = transcript.findings
    assert finding.what == "a release with noise of 0.5 is not in the ledger"


# -- keeping -------------------------------------------------------------------------------------


def test_a_transcript_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = Transcript()
    step(before, ROWS, beside=0.25)
    before.say(said([1.0, float("nan")], failures={"ann": "failed"}))
    before.finish({"Method.kept": "1f"})
    before.save(tmp_path)
    read = Transcript.load(tmp_path)
    assert read.findings == before.findings and read.state == before.state
    after = Transcript(read, {"ann": 0})
    assert torch.equal(step(after, [[9.0, 0.0], *ROWS[1:]]), before.noised[PATH][0].released)
    after.say(said([1.0, float("nan")], failures={"ann": "failed"}))
    after.finish({"Method.kept": "1f"})
    assert after.findings == []
    other = Transcript(read)
    other.noised, other.said = read.noised, read.said
    other.finish({"Method.kept": "2f"})
    assert other.findings[0].what == "Method.kept is in another state"


@given(st.integers(1, 200), st.integers(0, 199), st.floats(1e-3, 1e3))
def test_a_sketch_shows_every_value(size: int, place: int, moved: float) -> None:
    rows = torch.zeros(2, size)
    rows[1, place % size] = moved
    one, other = sketch(rows)
    assert float((one - other).abs().max()) == pytest.approx(moved)
