"""Rounds under privacy by client, with toy nodes: what is released, whoever answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpers.parts import Parts
from fedpers.privacy import Gaussian, Ledger, Release

PRIVATE = ("privacy.enabled=true", "privacy.unit=client")
FIXED = "privacy.deterministic_for_tests=true"
ALL = [["1", "2"], ["3"]]

# Client k sets all to k. The body is the identity, the head 6 zeros: the lengths of the changes are
# sqrt(2 (k - 1)^2 + 2 k^2 + 6 k^2), that is 2.83, 5.83 and 8.94.


def flat(found: Parts) -> torch.Tensor:
    return torch.cat([part.vector for part in found.values()])


def opened(serve: Any, folder: Path, *overrides: str, acts: Any = None) -> Any:
    settings = ["privacy.epsilon=1e6", "rounds=2", FIXED, *overrides]
    server = serve("fedavg", *PRIVATE, *settings, hosts=ALL, acts=acts)
    server.open(3, folder)
    return server


def test_a_round(serve: Any, tmp_path: Path) -> None:
    server = opened(serve, tmp_path, "privacy.max_grad_norm=10")
    assert server.strategy.channel.mechanism.sigma < 0.002  # at such an epsilon
    assert server.train() == {"answered": 3, "loss": 0.5}
    # Nobody is clipped, and all count alike: the mean of 1, 2 and 3.
    for part in server.strategy.parts.values():
        torch.testing.assert_close(
            part.vector, torch.full_like(part.vector, 2.0), atol=0.03, rtol=0
        )
    assert server.run.round.answers.rows == {}  # the noised value is the only one kept
    server.train(2)
    (release,) = Ledger(tmp_path / "ledgers" / "population.json").releases
    sigma = server.strategy.channel.mechanism.sigma
    assert release == Release(Gaussian(sigma, 1.0), 2)


def test_an_update_that_is_too_long_is_left_out_by_name(serve: Any, tmp_path: Path) -> None:
    server = opened(serve, tmp_path, "privacy.max_grad_norm=6")
    assert server.train()["answered"] == 2
    assert server.run.round.answers.failures == {"3": "update: norm 8.944, takes <= 6"}
    # The sum of the others' changes over all three: diagonal 1 + (0 + 1) / 3, else (1 + 2) / 3.
    expected = torch.tensor([[4 / 3, 1.0], [1.0, 4 / 3]])
    body = server.strategy.parts["body"]["trunk.weight"]
    torch.testing.assert_close(body, expected, atol=0.02, rtol=0)
    head = server.strategy.parts["head"].vector
    torch.testing.assert_close(head, torch.ones_like(head), atol=0.02, rtol=0)


def test_what_rounding_makes_longer_is_taken_and_scaled(serve: Any, tmp_path: Path) -> None:
    norm = math.sqrt(80) / 1.0005
    server = opened(serve, tmp_path, f"privacy.max_grad_norm={norm}")
    assert server.train()["answered"] == 3 and server.run.round.answers.failures == {}


def test_a_round_of_nobody_is_noise_alone(serve: Any, tmp_path: Path) -> None:
    settings = ["strategy.fraction=0.001", "privacy.max_grad_norm=1", "privacy.epsilon=1"]
    server = serve("fedavg", *PRIVATE, FIXED, *settings, "rounds=2", hosts=ALL)
    level, before = server.strategy.channel, server.strategy.parts
    server.open(3, tmp_path)
    assert level.cohort(1, ["1", "2", "3"]) == []
    assert server.train() == {"answered": 0}
    assert not any(kind == "train" for _, kind, _, _ in server.grid.seen)
    moved = flat(server.strategy.parts) - flat(before)
    assert bool((moved != 0).all())
    # sigma C / (q N)
    sigma = level.mechanism.sigma
    typical = sigma / 0.003
    assert 0.3 * typical < float(moved.std()) < 3 * typical
    assert Ledger(tmp_path / "ledgers" / "population.json").releases == [
        Release(Gaussian(sigma, 0.001), 1)
    ]


@pytest.mark.parametrize(
    "acts",
    [dict.fromkeys("123", "fail"), dict.fromkeys("123", "nan"), {0: "raise", 1: "garbage"}],
    ids=["fail", "nan", "nodes"],
)
def test_a_round_in_which_all_fail_is_noise_alone(
    serve: Any, tmp_path: Path, acts: dict[Any, str]
) -> None:
    # More such rounds than a run without privacy would go on for.
    settings = ["privacy.max_grad_norm=1", "privacy.epsilon=1", "rounds=5"]
    server = opened(serve, tmp_path, *settings, acts=acts)
    level = server.strategy.channel
    for server_round in range(1, 6):
        before = server.strategy.parts
        assert server.train(server_round) == {"answered": 0}
        assert set(server.run.round.answers.failures) == {"1", "2", "3"}
        moved = flat(server.strategy.parts) - flat(before)
        assert bool((moved != 0).all())
        typical = level.mechanism.sigma / 3  # sigma C / (q N)
        assert 0.3 * typical < float(moved.std()) < 3 * typical
    (release,) = Ledger(tmp_path / "ledgers" / "population.json").releases
    assert release == Release(Gaussian(level.mechanism.sigma, 1.0), 5)


def test_a_round_that_is_not_charged_releases_nothing(serve: Any, tmp_path: Path) -> None:
    server = opened(serve, tmp_path)
    for server_round in (1, 2):
        server.train(server_round)
    before = server.strategy.parts
    assert server.train(3) == {"answered": 0}
    assert server.strategy.parts is before


def test_noise_from_the_runs_seed_is_warned_of_before_it_is_drawn(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for settings, warned in (((), False), ((FIXED,), True)):
        caplog.clear()
        serve("fedavg", *PRIVATE, *settings, hosts=ALL).run.summary()
        assert ("nobody is protected" in caplog.text) == warned
