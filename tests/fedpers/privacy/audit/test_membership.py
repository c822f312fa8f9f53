"""Figures of membership attacks, by hand and by counting pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.privacy.audit.membership import auc, lira, tpr_at


def test_membership_figures_by_hand() -> None:
    members, others = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    # Pairs won: 3 > both, 2 ties and wins, 1 wins one: (2 + 1.5 + 1) / 6.
    assert auc(members, others) == pytest.approx(4.5 / 6)
    assert tpr_at(members, others, 0.01) == pytest.approx(1 / 3)  # above 2, the highest other
    assert tpr_at(members, others, 0.5) == 1  # above 0: one of two others passes
    hundred = np.arange(100.0)
    assert tpr_at(hundred + 0.5, hundred, 0.01) == pytest.approx(0.02)  # 98.5 and 99.5 above 98
    assert tpr_at(hundred + 0.5, hundred, 0.001) == pytest.approx(0.01)  # above 99, all of them


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_auc_is_the_share_of_pairs(a: list[int], b: list[int]) -> None:
    pairs = [(x > y) + (x == y) / 2 for x in a for y in b]
    assert auc(np.array(a, float), np.array(b, float)) == pytest.approx(np.mean(pairs))


def test_lira_knows_each_examples_own_level() -> None:
    """Example 0 is easy for all models, example 1 hard; the loss alone would err on both."""
    shadows = np.array([[5.0, -5.0], [5.2, -4.8], [3.0, -7.0], [3.2, -6.8]])
    inside = np.array([[True, True], [True, True], [False, False], [False, False]])
    scores = lira(np.array([3.1, -4.9]), shadows, inside)
    assert scores[0] < 0 < scores[1]
    # Means 5.1 and 3.1 for both; spread 0.01 over 4 - 2 free values, times 1 + 1/2.
    variance = 0.04 / 2 * 1.5
    assert scores[0] == pytest.approx(-0.5 * (2.0**2) / variance)
