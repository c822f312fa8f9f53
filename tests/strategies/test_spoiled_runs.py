"""Whole encrypted runs in which one client sends what spoils every sum."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from garbage import endless, far_outside, garbage

from fedpers.channels.sealed.node import SealedNode
from fedpers.channels.sealed.sealed_parts import SealedParts, open_parts, sign_parts
from fedpers.parts import Parts
from strategies.checkpoint import load_checkpoint

HOSTILE = "3"
ON = ["encryption.enabled=true", "rounds=3"]


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have one client spoil its updates before it signs them; other cipher, for the sums."""
    sealed = SealedNode.sealed

    def spoil(how: Any, rounds: Sequence[int] = (1, 2, 3)) -> None:
        def spoils(self: SealedNode, kept: Any, *update: Any, **named: Any) -> SealedParts:
            made = sealed(self, kept, *update, **named)
            if named["client"] != HOSTILE or named["server_round"] not in rounds:
                return made
            changed = how(self.cipher, replace(made, terms=()))
            identity = self.identities.identity(kept, HOSTILE)
            words = self.run, named["server_round"]
            return sign_parts(self.cipher, identity, *words, changed, named["weight"])

        monkeypatch.setattr(SealedNode, "sealed", spoils)

    return spoil


@pytest.mark.parametrize(
    ("name", "scheme", "how"),
    [
        ("fedavg", "bfv", garbage),
        pytest.param("fedavg", "ckks", garbage, marks=pytest.mark.slow),
        pytest.param("fedper", "ckks", endless, marks=pytest.mark.slow),
        ("perada", "ckks", far_outside),
        ("pfedsim", "ckks", garbage),
    ],
)
def test_a_client_that_spoils_every_sum_costs_itself_alone(
    run: Any, spoiled: Any, name: str, scheme: str, how: Any
) -> None:
    spoiled(how)
    found = run(name, *ON, f"encryption.scheme={scheme}")
    assert found.report["failed"] is None and found.report["rounds"] == 3
    assert found.failures() == {HOSTILE: "update: no sum with it opens"}
    assert [line["answered"] for line in found.rounds] == [5, 5, 5]


def test_no_checkpoint_holds_a_mean_that_did_not_open(run: Any, spoiled: Any) -> None:
    """Each is opened here with the clients' key, after every round."""
    ciphers = list[Any]()
    spoiled(lambda cipher, made: ciphers.append(cipher) or garbage(cipher, made), rounds=[3])
    sealed = [*ON, "encryption.scheme=bfv", "strategy.min_clients=6", "rounds=4"]
    found = run("fedavg", *sealed)
    assert [line["answered"] for line in found.rounds] == [6, 6, 6, 6]
    assert [line.get("skipped") for line in found.rounds] == [None, None, 1, None]
    opened = list[Parts]()

    def load(state: Any) -> None:
        groups, _ = state
        for row in groups.values():
            opened.append(open_parts(ciphers[0], row) if isinstance(row, SealedParts) else row)

    kept = found.folder / "checkpoint"
    assert load_checkpoint(kept, load) == 4
    shutil.rmtree(kept / "round-000004")
    assert load_checkpoint(kept, load) == 3
    assert len(opened) > 2 and not any(parts.first_not_finite() for parts in opened)
