"""Pooled moments: numbers by hand, the bound of a row, and what a whitener does."""

from __future__ import annotations

import pytest
import torch

from fedpers.moments import LONGEST, Frame, frame_rows, read, rows, whitener, width


def test_the_covariance_within_clients_and_classes_by_hand() -> None:
    # One client, class 0: (0, 0), (2, 0), of mean (1, 0); class 1: (5, 1) alone.
    z, y = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0]]), torch.tensor([0, 0, 1])
    frame = Frame.of(frame_rows(z).mean(0))
    torch.testing.assert_close(frame.mean.float(), z.mean(0))
    torch.testing.assert_close(frame.spread.float(), z.std(0, correction=0))
    found = read(rows(z, y, 2, frame).mean(0), 2, frame)
    assert found.share.tolist() == pytest.approx([2 / 3, 1 / 3])
    torch.testing.assert_close(found.mean.float(), torch.tensor([[1.0, 0.0], [5.0, 1.0]]))
    # Two squared distances of 1 and one free example: n - k = 3 - 2.
    within = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(found.within.float(), within, rtol=1e-5, atol=1e-5)


def test_apart_a_row_hangs_on_its_example_alone_and_is_bounded() -> None:
    generator = torch.Generator().manual_seed(3)
    z, y = 9 * torch.randn(40, 5, generator=generator), torch.arange(40) % 3
    frame = Frame.fixed(5)
    one = rows(z, y, 3, frame)
    assert one.shape == (40, width(5, 3))
    other = z.clone()
    other[1:] = 0
    torch.testing.assert_close(rows(other, y, 3, frame)[0], one[0])
    assert float(one.norm(dim=1).max()) <= 3**0.5 + 1e-6
    free = Frame.of(frame_rows(z).mean(0))  # while these do
    assert not torch.allclose(rows(other, y, 3, free)[0], rows(z, y, 3, free)[0])


@pytest.mark.parametrize("apart", [True, False])
def test_whitened_features_have_unit_variance_in_every_direction(apart: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4, 4, generator=generator)
    y = torch.arange(4000) % 2
    z = (torch.randn(4000, 4, generator=generator) @ mixed + y[:, None]) / 4  # none is shortened
    frame = Frame.fixed(4) if apart else Frame.of(frame_rows(z).mean(0))
    found = read(rows(z, y, 2, frame).mean(0), 2, frame)
    white = (z.double() - found.mean[y]) @ whitener(found.within, 0.0)
    torch.testing.assert_close(white.T.cov(), torch.eye(4).double(), atol=0.05, rtol=0)


def test_numbers_are_one_class_and_noise_breaks_nothing() -> None:
    z, y = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)), torch.randn(30)
    frame = Frame.of(frame_rows(z).mean(0))
    found = read(rows(z, y, 1, frame).mean(0), 1, frame)
    assert found.share.tolist() == [1.0]
    noisy = torch.randn(width(3, 2), generator=torch.Generator().manual_seed(2))
    broken = read(noisy, 2, Frame.fixed(3))
    assert bool(torch.isfinite(whitener(broken.within, 0.03)).all())
    assert float(broken.mean.norm(dim=1).max()) <= LONGEST * 3**0.5 + 1e-6
