"""Sealed updates that are broken cost their clients alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sealing_nodes import MEANS, PATHS, expected
from spoils import (
    another_range,
    another_size,
    counts_double,
    divided,
    empty,
    flipped,
    foreign,
    in_the_open,
    malformed,
    malformed_head,
    other_groups,
    other_layouts,
)

from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.records import unpack

Spoil = Callable[[SealedParts], Any]
SLOW_BUT_ONE = [PATHS[0], *(pytest.param(*path, marks=pytest.mark.slow) for path in PATHS[1:])]


@pytest.mark.parametrize(("name", "scheme"), PATHS)
def test_sums_by_hand(seal: Any, name: str, scheme: str) -> None:
    server = seal(name, *MEANS[name], scheme=scheme)
    assert server.train() == {}
    assert server.mean() == pytest.approx(expected(name, [1, 2, 3, 4]), abs=2e-4)


def test_known_numbers_of_examples_save_the_second_message(seal: Any) -> None:
    server = seal("fedavg")
    push = server.grid.push_messages

    def noted(messages: Any) -> Any:
        messages = list(messages)
        # A node is told the weights of its own clients only.
        for message in messages:
            _, body = unpack(message.content)
            assert set(body.get("weights", {})) <= set(body["clients"])
        return push(messages)

    server.grid.push_messages = noted
    assert server.train(1) == {} and "seal" in {kind for _, kind in server.grid.asked}
    server.grid.asked.clear()
    assert server.train(2) == {} and {kind for _, kind in server.grid.asked} == {"check"}
    assert server.mean() == pytest.approx(expected("fedavg", [1, 2, 3, 4]), abs=2e-4)
    # Without one of them, whose weight was counted on, the others' mean is right.
    server.grid.spoils["4"] = empty
    assert set(server.train(3)) == {"4"}
    assert server.mean() == pytest.approx(expected("fedavg", [1, 2, 3]), abs=2e-4)


SPOILS: list[tuple[Spoil, str]] = [
    (flipped, "update: sealed parts: cannot be read (digest"),
    (empty, "update: sealed parts: cannot be read (length"),
    (foreign, "update: sealed: key id: got 0123456789abcdef"),
    (another_size, "update: got 5 values in"),
    (another_range, "update: got range 1e+06, takes 8"),
    (counts_double, "update: sealed: kind: got sum"),
    (malformed, "update: sealed: chunk 0: coefficient"),
    (divided, "update: got divisor 0.001, takes 1"),
    (other_layouts, "update: got other parts than"),
    (other_groups, "update: got other parts than"),
    (in_the_open, "update: got plain parts, takes sealed ones"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize(("name", "scheme"), SLOW_BUT_ONE)
def test_a_broken_update_costs_its_client_alone(
    seal: Any, name: str, scheme: str, spoil: Spoil, reason: str
) -> None:
    # A node of one client: plain parts and sealed ones do not go into one message.
    server = seal(name, *MEANS[name], scheme=scheme, spoils={"3": spoil})
    failures = server.train()
    assert list(failures) == ["3"] and failures["3"].startswith(reason), failures
    assert server.mean() == pytest.approx(expected(name, [1, 2, 4]), abs=2e-4)


@pytest.mark.parametrize("spoil", [flipped, foreign, malformed, other_layouts])
@pytest.mark.parametrize(("name", "scheme"), SLOW_BUT_ONE)
def test_it_does_not_cost_the_others_of_its_node(
    seal: Any, name: str, scheme: str, spoil: Spoil
) -> None:
    server = seal(name, *MEANS[name], scheme=scheme, spoils={"1": spoil})
    assert list(server.train()) == ["1"]
    assert server.mean() == pytest.approx(expected(name, [2, 3, 4]), abs=2e-4)


def test_a_malformed_head_is_found_before_it_is_compared(seal: Any) -> None:
    server = seal(
        "pfedsim",
        "strategy.params.rho=0.25",
        "rounds=4",
        scheme="ckks",
        spoils={"3": malformed_head},
    )
    failures = server.train()
    assert failures == {"3": failures["3"]} and "coefficient" in failures["3"]
    assert sorted(server.strategy.models) == ["1", "2", "4"]
