"""Figures of a reconstruction, by hand."""

from __future__ import annotations

import pytest
import torch

from fedpers.privacy.audit.inversion import psnr, total_variation


def test_picture_figures_by_hand() -> None:
    assert psnr(torch.zeros(4), torch.full((4,), 0.2), 2.0) == pytest.approx(20)
    assert psnr(torch.zeros(4), torch.zeros(4), 1.0) == pytest.approx(120)
    x = torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])
    # Down: |0|, |2|, mean 1; across: |1|, |3|, mean 2.
    assert float(total_variation(x)) == 3
    assert float(total_variation(torch.ones(2, 5))) == 0
