"""Updates that spoil a sum which nobody can read: each costs its sender alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from garbage import endless, far_outside, garbage
from sealing_nodes import MEANS, PATHS, expected

from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.channels.sealed.statement import Place

Spoil = Callable[[Any, SealedParts], SealedParts]


SPOILS = [garbage, far_outside, endless]


def server_of(seal: Any, name: str, scheme: str, **more: Any) -> Any:
    return seal(name, *MEANS[name], scheme=scheme, **more)


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize(
    ("name", "scheme"),
    [PATHS[0], PATHS[3], *(pytest.param(*p, marks=pytest.mark.slow) for p in PATHS[1:3])],
)
def test_what_spoils_the_sum_costs_its_sender_alone(
    seal: Any, name: str, scheme: str, spoil: Spoil
) -> None:
    server = server_of(seal, name, scheme)
    server.grid.spoils["3"] = lambda sealed: spoil(server.grid.cipher, sealed)
    assert server.train() == {"3": "update: no sum with it opens"}
    assert server.mean() == pytest.approx(expected(name, [1, 2, 4]), abs=2e-4)
    assert list(server.run.round.reports) == ["1", "2", "4"] and server.run.unused is None
    server.grid.spoils.clear()
    assert server.train(2) == {}
    assert server.mean() == pytest.approx(expected(name, [1, 2, 3, 4]), abs=2e-4)


def test_two_of_eight_are_named(seal: Any) -> None:
    everybody = [str(k) for k in range(1, 9)]
    server = server_of(seal, "fedavg", "ckks", hosts=[everybody[:3], everybody[3:]])
    for client in "27":
        server.grid.spoils[client] = lambda sealed: garbage(server.grid.cipher, sealed)
    assert sorted(server.train()) == ["2", "7"]
    assert server.mean() == pytest.approx(expected("fedavg", [1, 3, 4, 5, 6, 8]), abs=2e-4)


def test_where_nobody_can_be_named_the_round_changes_nothing(seal: Any) -> None:
    """Of three, of whom two would be too few for a sum."""
    server = seal("fedavg", "strategy.min_clients=3", hosts=[["1", "2"], ["3"]])
    server.grid.spoils["3"] = lambda sealed: garbage(server.grid.cipher, sealed)
    before = server.strategy.parts
    assert server.train() == {} and server.strategy.parts is before
    assert "the sum does not open, and nobody can tell whose" in str(server.run.unused)
    assert all(part.vector.isfinite().all() for part in server.strategy.parts.values())
    server.grid.spoils.clear()
    assert server.train(2) == {} and server.run.unused is None


def test_a_mean_that_needs_opening_is_of_those_whose_sum_opens(seal: Any) -> None:
    server = seal("perada", "strategy.params.kd_steps=1")
    server.grid.spoils["3"] = lambda sealed: garbage(server.grid.cipher, sealed)
    assert list(server.train()) == ["3"]
    kinds = [kind for _, kind in server.grid.asked]
    assert kinds.count("open") == 2 and kinds.index("agree") > max(
        k for k, kind in enumerate(kinds) if kind == "check"
    )
    teacher = server.strategy.channel.derived("logits").vector
    assert float(teacher.mean()) == pytest.approx(7 / 3, abs=2e-4)


# -- on its way --------------------------------------------------------------------------------


def test_a_replayed_update_is_refused(seal: Any) -> None:
    server, kept = server_of(seal, "perada", "bfv"), dict[str, Any]()
    server.grid.after = lambda client, turn, made: kept.setdefault(client, made)
    assert server.train(1) == {}
    found = server.train(2)
    assert sorted(found) == list("1234")
    assert found["3"] == "update: sealed: got that of '3' in round 1, takes '3' and 2"


def test_reordered_updates_are_refused(seal: Any) -> None:
    """Two clients of one node, each in the other's place."""
    server = server_of(seal, "perada", "bfv")

    def swapped(client: str, turn: int, sealed: Any) -> Any:
        if client in "12":
            return server.grid.signed("2" if client == "1" else "1", bare(sealed), turn)
        return sealed

    server.grid.after = swapped
    assert sorted(server.train()) == ["1", "2"]
    assert server.mean() == pytest.approx(3.5, abs=2e-4)


def bare(sealed: SealedParts) -> SealedParts:
    return replace(sealed, terms=())


@pytest.mark.parametrize("how", ["unsigned", "two", "other weight", "bytes", "foreign signature"])
def test_an_update_that_is_not_as_it_was_signed_is_refused(seal: Any, how: str) -> None:
    server = server_of(seal, "perada", "bfv")

    def changed(client: str, turn: int, sealed: Any) -> Any:
        if client != "4":
            return sealed
        ((term,),) = sealed.terms
        match how:
            case "unsigned":
                return bare(sealed)
            case "two":
                return replace(sealed, terms=((term, term),))
            case "other weight":
                return server.grid.signed(client, bare(sealed), turn, 0.5)
            case "bytes":
                return replace(garbage(server.grid.cipher, sealed), terms=sealed.terms)
        said = replace(term.statement, signature=bytes(64))
        return replace(sealed, terms=((term._replace(statement=said),),))

    server.grid.after = changed
    assert list(server.train()) == ["4"]
    assert server.mean() == pytest.approx(2.0, abs=2e-4)


def test_a_client_with_a_wrong_tag_spoils_the_sum_and_is_named(seal: Any) -> None:
    server = server_of(seal, "perada", "bfv")

    def tagged(client: str, turn: int, sealed: Any) -> Any:
        if client != "4":
            return sealed
        ((term,),) = sealed.terms
        word = replace(term.statement, tag=bytes(16))
        own = word.by(server.grid.identity(client), Place("", sealed.groups[0].part))
        return replace(sealed, terms=((term._replace(statement=own),),))

    server.grid.after = tagged
    assert list(server.train()) == ["4"]
    assert server.mean() == pytest.approx(2.0, abs=2e-4)
