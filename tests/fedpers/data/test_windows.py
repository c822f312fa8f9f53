"""Statistics of windows, by hand."""

from __future__ import annotations

import pytest
import torch

from fedpers.data.windows import statistics


def test_eleven_numbers_a_channel_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 0.0, -1.0]).repeat(4).view(1, 1, 16)
    found = statistics(torch.cat([x, 2 * x + 1], 1))[0].view(11, 2).T
    names = ["mean", "sd", "least", "most", "q10", "median", "q90", "change", "off", "slow", "next"]
    first, second = (dict(zip(names, row.tolist(), strict=True)) for row in found)
    assert first["mean"] == pytest.approx(0) and second["mean"] == pytest.approx(1)
    assert first["sd"] == pytest.approx(0.5**0.5) and second["sd"] == pytest.approx(2**0.5)
    assert (first["least"], first["most"]) == (-1, 1) and (second["least"], second["most"]) == (
        -1,
        3,
    )
    assert first["change"] == pytest.approx(1) and first["off"] == pytest.approx(0.5)
    assert first["slow"] == pytest.approx(0, abs=1e-9)  # a period of 4 in 16 is the fourth
    assert first["next"] == pytest.approx(0, abs=1e-6)


def test_what_does_not_move_is_finite() -> None:
    assert bool(torch.isfinite(statistics(torch.ones(3, 2, 16))).all())
