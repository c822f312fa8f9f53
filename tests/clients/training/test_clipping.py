"""A whole update within a norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.parts import Part, Parts
from fedpers.robust import clipped


def parts(body: list[float], head: list[float]) -> Parts:
    return Parts(
        {
            "body": Part.of({"w": torch.tensor(body)}),
            "head": Part.of({"v": torch.tensor(head[:1]), "b": torch.tensor(head[1:])}),
        }
    )


def change(upload: Parts, broadcast: Parts) -> torch.Tensor:
    """All parts' changes, one after another."""
    return torch.cat([part.vector - broadcast[name].vector for name, part in upload.items()])


def test_a_long_change_is_scaled_to_the_norm_over_all_parts_together() -> None:
    broadcast, upload = parts([1.0, 1.0], [0.0, 0.0]), parts([4.0, 1.0], [0.0, 4.0])
    # (3, 0) and (0, 4) are 3 and 4 long, and 5 together: at norm 1, a fifth of each is left.
    found = clipped(upload, broadcast, 1.0)
    torch.testing.assert_close(found["body"].vector, torch.tensor([1.6, 1.0]))
    torch.testing.assert_close(found["head"].vector, torch.tensor([0.0, 0.8]))
    assert found.layouts == upload.layouts


@pytest.mark.parametrize("norm", [5.0, 5.5, 1e6])
def test_a_short_change_stays_as_it_is(norm: float) -> None:
    broadcast, upload = parts([1.0, 1.0], [0.0, 0.0]), parts([4.0, 1.0], [0.0, 4.0])
    assert clipped(upload, broadcast, norm) is upload
    assert clipped(broadcast, broadcast, norm) is broadcast


def test_what_is_sent_of_what_was_received_is_clipped() -> None:
    # A client that received two parts and sends one of them.
    broadcast = parts([0.0, 0.0], [9.0, 9.0])
    found = clipped(parts([6.0, 8.0], [0.0, 0.0]).only(["body"]), broadcast, 5.0)
    assert list(found) == ["body"]
    torch.testing.assert_close(found["body"].vector, torch.tensor([3.0, 4.0]))


scalars = st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=2)


@given(scalars, scalars, scalars, scalars, st.floats(1e-2, 1e4))
def test_no_change_is_longer_than_the_norm_nor_turned(
    a: list[float], b: list[float], c: list[float], d: list[float], norm: float
) -> None:
    broadcast, upload = parts(a, b), parts(c, d)
    before = change(upload, broadcast)
    after = change(clipped(upload, broadcast, norm), broadcast)
    length, rounding = float(before.norm()), 1e-3  # scalars of 1e3 in float32, and their sums
    assert float(after.norm()) == pytest.approx(min(length, norm), abs=rounding)
    expected = before * min(1.0, norm / max(length, 1e-30))
    torch.testing.assert_close(after, expected, atol=rounding, rtol=0)
