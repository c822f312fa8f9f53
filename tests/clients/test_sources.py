"""That no source of a private client serves twice, and that no question is answered twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clients.node.host import ClientHost
from fedpers.config import Config
from fedpers.privacy import Ledger
from fedpers.privacy.noise import Source, known

PRIVATE = ("privacy.enabled=true", "privacy.epsilon=3", "rounds=3", "privacy.steps=2")
PRIVATE += ("privacy.weights=counts", "privacy.delta=1e-3")


class Handed:
    """Sources of tests, with the paths for which one was handed out."""

    def __init__(self) -> None:
        self.paths: list[tuple[int | str, ...]] = []

    def __call__(self, *path: int | str) -> Source:
        self.paths.append(path)
        return known(0)(*path)


def host_of(config: Config, folder: Path, **more: Any) -> ClientHost:
    return ClientHost(config, config.strategy.name, (), folder / "run" / "state", **more)


@pytest.mark.parametrize("fold", ["off", "2"])
@pytest.mark.parametrize("name", ["fedrep", "prior", "fedcp"])
def test_each_round_client_and_purpose_has_a_source_of_its_own(
    small: Any, tmp_path: Path, name: str, fold: str
) -> None:
    sources = Handed()
    host = host_of(small(name, *PRIVATE, f"training.fold={fold}"), tmp_path, sources=sources)
    for server_round in (1, 2):
        answers = host.train_all(dict.fromkeys(("0", "1"), host.algorithm.initial), server_round)
        assert not [found for found in answers.values() if isinstance(found, Exception)]
    phases = [phase.name for phase in host.algorithm.phases() if phase.released]
    wanted = {(r, c, phase) for r in (1, 2) for c in ("0", "1") for phase in phases}
    assert wanted | {(1, "0", "examples"), (1, "1", "examples")} <= set(sources.paths)
    assert len(set(sources.paths)) == len(sources.paths)


@pytest.mark.parametrize("name", ["fedavg", "prior"])
def test_a_question_that_comes_twice_gets_the_same_answer(
    small: Any, tmp_path: Path, name: str
) -> None:
    config = small(name, *PRIVATE)
    host = host_of(config, tmp_path)
    broadcast = host.algorithm.initial
    first, report = host.train("0", 1, broadcast)
    (path,) = (tmp_path / "run" / "state" / "ledgers").glob("*.json")
    charged = Ledger(path).releases
    for asked in (host, host_of(config, tmp_path)):  # at once, and after a restart
        upload, again = asked.train("0", 1, broadcast)
        assert upload.digest() == first.digest() and again == report
    assert Ledger(path).releases == charged
    other, _ = host.train("0", 2, broadcast)
    assert other.digest() != first.digest() and Ledger(path).releases != charged
