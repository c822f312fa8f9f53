"""Degrees against other computations, and what a graph withstands."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from fedpers.channels.masked.graph import Graph, Policy, degree, quantile
from fedpers.errors import ConfigError


def ring(clients: int, k: int, threshold: int) -> Graph:
    return Graph(tuple(f"{place:03d}" for place in range(clients)), k, threshold)


def tail(population: int, marked: int, drawn: int, most: int) -> Fraction:
    """P[more than ``most`` marked ones are drawn], term by term."""
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(most + 1, min(drawn, marked) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


@given(st.data())
def test_the_quantile_is_the_first_whose_tail_is_small_enough(data: st.DataObject) -> None:
    population = data.draw(st.integers(1, 60))
    marked = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, population))
    odds = 2.0 ** data.draw(st.integers(0, 30))
    most = quantile(population, marked, drawn, odds)
    assert tail(population, marked, drawn, most) <= 1 / Fraction(odds)
    assert most == 0 or tail(population, marked, drawn, most - 1) > 1 / Fraction(odds)


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropouts"),
    [(101, 1 / 3, 0.3), (200, 0.2, 0.3), (1000, 1 / 3, 0.3), (1000, 0.1, 0.2), (5000, 0.2, 0.3)],
)
def test_a_degree_holds_by_scipy_and_the_one_before_it_does_not(
    clients: int, corrupt: float, dropouts: float
) -> None:
    policy = Policy(corrupt=corrupt, dropouts=dropouts)
    k, threshold = degree(clients, policy)
    pairs = clients**2 / 2

    def holds(k: int) -> bool:
        bad = int(corrupt * clients + 1e-9)
        dropped = int(dropouts * clients + 1e-9)
        for t in range(1, k + 1):
            opened = pairs * hypergeom.sf(t - 1, clients - 1, bad, k)
            stuck = pairs * hypergeom.sf(k - t, clients - 1, dropped, k)
            if opened <= 2.0**-40 and stuck <= 2.0**-20:
                return True
        return False

    assert k % 2 == 0 and k < clients - 1
    assert holds(k) and not holds(k - 2)
    assert pairs * hypergeom.sf(threshold - 1, clients - 1, int(corrupt * clients), k) <= 2.0**-40


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropouts", "published"),
    [
        (100, 0.33, 0.33, 68),
        (1_000, 0.33, 0.33, 286),
        (10_000, 0.33, 0.33, 422),
        (100, 0.05, 0.33, 28),
        (1_000, 0.05, 0.33, 72),
        (10_000, 0.05, 0.33, 86),
        (100, 0.33, 0.05, 34),
        (1_000, 0.33, 0.05, 78),
        (10_000, 0.33, 0.05, 92),
    ],
)
def test_degrees_beside_those_of_the_paper_s_authors(
    clients: int, corrupt: float, dropouts: float, published: int
) -> None:
    """Google's federated-compute lists these for a curious server, 2^-40 and 2^-20, and dropouts
    that fall at random. A server that chooses them costs up to a third more neighbours."""
    k, _ = degree(clients, Policy(corrupt=corrupt, dropouts=dropouts, all_pairs=9))
    assert published <= k <= 1.34 * published


@pytest.mark.parametrize(
    ("clients", "corrupt", "expected", "quorum"),
    [
        (2, 1 / 3, (1, 1), 2),
        (3, 1 / 3, (2, 2), 3),
        (20, 0.25, (19, 13), 13),
        (32, 0.33, (31, 21), 22),
    ],
)
def test_small_cohorts_mask_in_all_pairs(
    clients: int, corrupt: float, expected: tuple[int, int], quorum: int
) -> None:
    """20 clients, 5 corrupt: t = floor((19 + 5) / 2) + 1, more than half of helpers and corrupt."""
    policy = Policy(minimum=2, corrupt=corrupt, dropouts=0.3)
    assert degree(clients, policy) == expected
    assert policy.quorum(clients) == quorum


@pytest.mark.parametrize(("clients", "k"), [(7, 2), (11, 4), (12, 6), (101, 28)])
def test_a_graph_is_regular_and_goes_both_ways(clients: int, k: int) -> None:
    graph = Graph.of([f"{n}" for n in range(clients)], b"seed", Policy())
    graph = Graph(graph.ring, k, 1)
    for client in graph.ring:
        found = graph.neighbours(client)
        assert len(set(found)) == k and client not in found and list(found) == sorted(found)
        assert all(client in graph.neighbours(other) for other in found)


def test_neighbours_by_hand() -> None:
    graph = ring(7, 4, 1)
    assert graph.neighbours("000") == ("001", "002", "005", "006")
    assert ring(4, 3, 1).neighbours("002") == ("000", "001", "003")


def test_all_pairs_hold_while_each_has_a_threshold_of_others() -> None:
    graph = ring(5, 4, 3)
    assert graph.holds(graph.ring[:4]) and not graph.holds(graph.ring[:3])


def test_each_seed_orders_the_ring_anew() -> None:
    """A client's left neighbour is any other one, about as often: chi-squared over 30 seeds."""
    names = [f"{n}" for n in range(5)]
    counts = dict.fromkeys(names[1:], 0)
    for seed in range(400):
        order = Graph.of(names, seed.to_bytes(4, "big"), Policy()).ring
        counts[order[order.index("0") - 1]] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 21  # 3 degrees, p = 1e-4


def two_runs(graph: Graph, marked: set[str], fewest: bool) -> int:
    """The fewest, or the most, marked clients in two runs that do not overlap; counted plainly."""
    n, run = len(graph.ring), graph.k // 2
    there = [client in marked for client in graph.ring]
    runs = [sum(there[(start + step) % n] for step in range(run)) for start in range(n)]
    sums = [
        runs[one] + runs[two]
        for one in range(n)
        for two in range(n)
        if run <= (two - one) % n <= n - run
    ]
    return min(sums) if fewest else max(sums)


def connected(graph: Graph, clients: set[str]) -> bool:
    seen, rest = set(), [min(clients)]
    while rest:
        one = rest.pop()
        if one not in seen:
            seen.add(one)
            rest += [other for other in graph.neighbours(one) if other in clients]
    return seen == clients


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_survivors_that_hold_are_cut_by_as_many_corrupt_ones(data: st.DataObject) -> None:
    """A good graph (Bell et al. 2020), for survivors and corrupt clients chosen after the graph."""
    n = data.draw(st.integers(7, 16))
    k = data.draw(st.sampled_from([k for k in (2, 4, 6, 8) if k < n - 1]))
    graph = ring(n, k, data.draw(st.integers(1, k)))
    lost = data.draw(st.sets(st.sampled_from(graph.ring), max_size=n // 2))
    corrupt = data.draw(st.sets(st.sampled_from(graph.ring), max_size=n // 2))
    survivors = set(graph.ring) - lost
    assert graph.holds(survivors) == (two_runs(graph, survivors, fewest=True) >= graph.threshold)
    if graph.holds(survivors) and two_runs(graph, corrupt, fewest=False) < graph.threshold:
        for client in survivors:
            around = set(graph.neighbours(client))
            assert len(around & survivors) >= graph.threshold > len(around & corrupt)
        assert not survivors - corrupt or connected(graph, survivors - corrupt)


def test_a_server_that_drops_clients_to_cut_the_graph_is_seen() -> None:
    """Two gaps of k/2 set a stretch of the ring apart, with few dropouts: each client's own
    neighbourhood may look well, the graph does not."""
    graph = ring(60, 8, 4)
    gaps = {f"{place:03d}" for place in (*range(10, 14), *range(30, 34))}
    survivors = set(graph.ring) - gaps
    assert not connected(graph, survivors)
    assert all(len(set(graph.neighbours(one)) & survivors) >= 4 for one in survivors)
    assert not graph.holds(survivors)
    assert graph.holds(set(graph.ring) - {f"{place:03d}" for place in range(0, 60, 8)})


def test_graphs_of_random_orders_fail_as_seldom_as_they_may() -> None:
    """At 2^-5 the union over pairs of runs leaves room; corrupt clients are the last 12 by id."""
    policy = Policy(corrupt=0.2, dropouts=0.2, all_pairs=5, security=5, correctness=5)
    names = [f"{n:02d}" for n in range(60)]
    corrupt, failed = set(names[-12:]), 0
    for seed in range(200):
        graph = Graph.of(names, seed.to_bytes(4, "big"), policy)
        assert graph.k < 59
        failed += two_runs(graph, corrupt, fewest=False) >= graph.threshold
    assert failed <= 200 * 2**-5 + 5 * (200 * 2**-5) ** 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum": 1},
        {"corrupt": -0.1},
        {"dropouts": -0.1},
        {"corrupt": 0.4, "dropouts": 0.3},
        {"attempts": 0},
        {"security": 0},
    ],
)
def test_policies_that_cannot_hold_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"masks\."):
        Policy(**wrong)  # type: ignore[arg-type]


def test_two_quorums_share_an_honest_client_whatever_the_shares() -> None:
    for clients in range(2, 200):
        for corrupt in np.linspace(0, 0.9, 10):
            policy = Policy(corrupt=float(corrupt), dropouts=0.0)
            shared = 2 * policy.quorum(clients) - clients
            assert shared > policy.corrupted(clients)
    degrees = [degree(n, Policy())[0] for n in (200, 1000, 5000)]
    assert all(one < two for one, two in pairwise(degrees)) and degrees[-1] < 500
