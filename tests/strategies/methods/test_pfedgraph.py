"""pFedGraph's weights, by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.methods.pfedgraph import graph, on_simplex


def test_the_nearest_point_of_the_simplex() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.3], [2.0, 0.0, 0.0], [0.2, 0.2, 0.2], [1.0, 0.8, -3.0]])
    expected = torch.tensor([[0.4, 0.4, 0.2], [1.0, 0.0, 0.0], [1 / 3] * 3, [0.6, 0.4, 0.0]])
    torch.testing.assert_close(on_simplex(rows), expected)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_no_other_point_is_nearer(values: list[float]) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    found = on_simplex(row)
    assert bool((found >= 0).all()) and abs(float(found.sum()) - 1) < 1e-9
    # The condition of Kuhn and Tucker: what is left on the support is the same everywhere.
    left = (row - found)[0]
    support = found[0] > 1e-12
    assert float(left[support].max() - left[support].min()) < 1e-9
    assert not bool((left[~support] > left[support].max() + 1e-9).any())


def test_the_graph_of_three_clients() -> None:
    """p = 1/3; cosines 1, 0.95 (counts as 1) and 0 over 2 lam = 2: the row (1/3 + 1/2, 1/3 + 1/2,
    1/3) less 1/3 each."""
    cosines = torch.tensor([[0.9999, 0.95, 0.0], [0.95, 0.9999, 0.0], [0.0, 0.0, 0.9999]])
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1 / 6, 1 / 6, 2 / 3]])
    torch.testing.assert_close(graph(cosines, 1.0), expected)


def test_a_large_lam_is_the_plain_mean() -> None:
    torch.testing.assert_close(graph(torch.eye(4), 1e6), torch.full((4, 4), 0.25))
