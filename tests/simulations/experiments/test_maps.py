"""The map: regions by hand, what is refused, and a page that says what it shows."""

from __future__ import annotations

from typing import Any

import pytest

from fedpers.errors import ConfigError
from fedpers.evaluation.shown import headline_of
from simulations.experiments.maps import kind_of, map_html, plan_of, regions, text

STRATEGIES = ["fedavg", "local:choose=true", "eb"]


def report(mean: float, clients: list[float]) -> dict[str, Any]:
    summary = {"weighted": mean, "mean": mean, "worst_decile": mean}
    return {
        "accuracy": {"personal": summary, "global": None, "gated": None},
        "by_client": {str(k): value for k, value in enumerate(clients)},
        "clients": len(clients),
    }


@pytest.fixture
def drawn() -> tuple[Any, Any]:
    """At 20 examples eb is better for every client, at 5 for some only."""
    plan = plan_of(["5", "20"], ["none"], STRATEGIES, 1)
    base = [0.5, 0.6, 0.7, 0.8]
    gains = {5: [0.1, -0.08, 0.06, -0.04], 20: [0.1, 0.11, 0.1, 0.11]}
    reports = {}
    for (size, _), own in plan.items():
        for cell in own:
            clients = base
            if cell.method == "eb":
                clients = [b + g for b, g in zip(base, gains[size], strict=True)]
            if cell.method.startswith("local"):
                clients = [b - 0.2 for b in base]
            reports[cell] = report(sum(clients) / 4, clients)
    return plan, reports


def test_regions_by_hand(drawn: tuple[Any, Any]) -> None:
    few, many = regions(*drawn)
    assert (few.kind, many.kind) == ("personal", "personal")
    # Differences 10, -8, 6, -4 have a mean of 1 and an interval of about 13: nobody wins.
    assert not few.decided and many.decided
    assert many.rival is not None and many.rival[:2] == ("fedavg", pytest.approx(0.105))
    # Differences .1, .11, .1, .11: sd .00577, t(.975, 3) = 3.182, over 2: .0092.
    assert many.rival[2] == pytest.approx(0.0092, abs=1e-4)


def test_the_page_and_the_table_name_both_kinds_where_none_wins(drawn: tuple[Any, Any]) -> None:
    plan, reports = drawn
    found = list(regions(plan, reports))
    _, metric, _ = headline_of(next(iter(reports.values())))
    line = text(found, metric).splitlines()[2]
    assert "personal ≈ global" in line and "personal: eb 75.5, +10.5 ± 0.9 over fedavg" in line
    page = map_html("x", found, reports, "fedpers map <x>")
    assert "personal ≈ global" in page and "&lt;x&gt;" in page


def test_a_method_that_failed_is_named(drawn: tuple[Any, Any]) -> None:
    plan, reports = drawn
    left = {cell: found for cell, found in reports.items() if cell.method != "eb"}
    few, _ = regions(plan, left)
    assert few.kind == "global" and few.failed == ("eb",)


@pytest.mark.parametrize(
    ("sizes", "epsilons", "says"),
    [(["0"], ["none"], "--sizes"), (["ten"], ["none"], "--sizes"), (["5"], ["-1"], "--epsilons")],
)
def test_what_is_no_number_is_refused(sizes: list[str], epsilons: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_of(sizes, epsilons, STRATEGIES, 1)


def test_kinds_by_name() -> None:
    names = ["fedavg", "local:choose=true", "intercept", "ditto:mu=1", "my.package:Mine"]
    assert [kind_of(name) for name in names] == [
        *("global", "local", "few numbers", "personal", "personal"),
    ]
