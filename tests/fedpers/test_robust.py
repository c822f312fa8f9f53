"""Combinations that a few liars cannot move, by hand and by property."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.errors import RunError
from fedpers.parts import Part, Parts
from fedpers.robust import change, combine_robustly, krum, median, too_long, trimmed_mean


def parts(body: list[float], head: list[float], dtype: torch.dtype = torch.float32) -> Parts:
    return Parts(
        {
            "body": Part.of({"w": torch.tensor(body, dtype=dtype)}),
            "head": Part.of({"v": torch.tensor(head, dtype=dtype)}),
        }
    )


def test_the_median_by_hand() -> None:
    x = torch.tensor([[1.0, 9.0], [5.0, 2.0], [3.0, 4.0]])
    assert median(x).tolist() == [3.0, 4.0]
    # Of 1, 3, 5, 100 and 2, 4, 9, -50 the means of the two in the middle: 4 and 3.
    assert median(torch.cat([x, torch.tensor([[100.0, -50.0]])])).tolist() == [4.0, 3.0]
    assert median(x[:1]).tolist() == [1.0, 9.0]


def test_the_trimmed_mean_by_hand() -> None:
    x = torch.tensor([[1.0, 50.0], [-100.0, 2.0], [3.0, 4.0], [5.0, 6.0], [100.0, -7.0]])
    # 1, 3, 5 and 2, 4, 6 are left.
    assert trimmed_mean(x, 1).tolist() == [3.0, 4.0]
    assert trimmed_mean(x, 2).tolist() == [3.0, 4.0]
    torch.testing.assert_close(trimmed_mean(x, 0), x.mean(dim=0))


def test_krum_by_hand() -> None:
    # On a line 0, 1, 2, 10, 13; f = 1: scores over the 5 - 1 - 2 = 2 nearest others.
    # 0: 1 + 4; 1: 1 + 1; 2: 1 + 4; 10: 9 + 64; 13: 9 + 121. The four best leave 13 out.
    x = torch.tensor([[13.0], [0.0], [2.0], [1.0], [10.0]])
    assert krum(x, 1).tolist() == [1, 2, 3, 4]
    # f = 0: over the 3 nearest, and everybody is taken.
    assert krum(x, 0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match=r"^strategy\.combine: krum takes 7 updates or more a round"):
        krum(x, 2)


def test_krum_tells_near_updates_apart_far_from_the_origin() -> None:
    # By inner products float32 would make all these distances 0.
    near = 1000 + torch.tensor([[0.0, 0.0], [0.01, 0.0], [0.0, 0.01], [0.01, 0.01], [0.3, 0.3]])
    assert krum(near, 1).tolist() == [0, 1, 2, 3]


def test_krum_chooses_once_for_all_parts() -> None:
    # The liar is near in its body and far in its head: both are left out.
    honest = [parts([0.0], [0.0]), parts([1.0], [0.0]), parts([2.0], [0.3]), parts([3.0], [0.1])]
    updates = [*honest, parts([1.5], [90.0])]
    found = combine_robustly("krum", updates, 0.2)
    assert found["body"].vector.tolist() == [1.5]  # of 0, 1, 2, 3
    assert found["head"].vector.tolist() == [pytest.approx(0.1)]


@pytest.mark.parametrize(("rule", "body"), [("median", 3.0), ("trimmed", 10 / 3), ("krum", 2.5)])
def test_parts_keep_their_layout(rule: str, body: float) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0] if rule == "krum" else [1.0, 2.0, 3.0, 5.0, 99.0]
    updates = [parts([v], [v, -v], torch.bfloat16) for v in values]
    if rule == "krum":
        updates[4] = parts([99.0], [99.0, -99.0], torch.bfloat16)
    found = combine_robustly(rule, updates, 0.2)
    assert found.layouts == updates[0].layouts
    assert found["body"].vector.item() == pytest.approx(body, abs=0.01)
    assert found["head"].vector.tolist() == pytest.approx([body, -body], abs=0.01)


def test_how_many_are_trimmed() -> None:
    # 0.29 * 100 is 28.999999999999996, and means 29: with as many liars, nothing of them is left.
    updates = [parts([0.0 if k < 71 else 1e6], [0.0]) for k in range(100)]
    assert combine_robustly("trimmed", updates, 0.29)["body"].vector.item() == 0.0
    assert combine_robustly("trimmed", updates, 0.28)["body"].vector.item() > 0


@given(st.data())
def test_liars_do_not_move_it_out_of_the_range_of_honest_values(data: st.DataObject) -> None:
    liars = data.draw(st.integers(0, 4))
    honest = data.draw(st.integers(liars + 1, 9))
    number = st.floats(-100, 100, width=32)
    any_number = st.floats(-(2.0**100), 2.0**100, width=32)
    rows = data.draw(st.lists(st.tuples(number, number), min_size=honest, max_size=honest))
    lies = data.draw(st.lists(st.tuples(any_number, any_number), min_size=liars, max_size=liars))
    x = torch.tensor(rows)
    everybody = torch.cat([x, torch.tensor(lies).view(-1, 2)])
    everybody = everybody[torch.tensor(data.draw(st.permutations(range(len(everybody)))))]
    low, high = x.amin(dim=0) - 1e-4, x.amax(dim=0) + 1e-4
    for found in (median(everybody), trimmed_mean(everybody, liars)):
        assert bool((low <= found).all()) and bool((found <= high).all())


@given(st.integers(0, 3), st.data())
def test_krum_takes_the_honest_where_they_lie_close_together(
    liars: int, data: st.DataObject
) -> None:
    honest = data.draw(st.integers(liars + 3, 9))
    # Within 1 of each other, and liars at least 100 away and from each other: each liar's score
    # holds a distance of 100, an honest client's K - f - 2 <= K - f - 1 nearest are honest.
    x = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=honest, max_size=honest)))
    lies = 100.0 * torch.arange(1, liars + 1)
    assert krum(torch.cat([lies, x])[:, None], liars).tolist() == list(range(liars, honest + liars))


def test_the_length_of_a_change_is_over_all_parts() -> None:
    sent, update = parts([1.0, 1.0], [0.0]), parts([4.0, 1.0], [4.0])
    assert change(sent, update) == 5.0  # (3, 0) and (4)
    assert too_long(sent, update, 5.0) is None and too_long(sent, update, 4.996) is None
    assert too_long(sent, update, 4.9) == "update: norm 5, takes <= 4.9"
