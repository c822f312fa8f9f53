"""Groups on the experiments that the README reports: a round is that of clients one by one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from clients.node.host import PERSONAL, ClientHost
from clients.training.groups import only_phases
from fedpers.config import load_config
from fedpers.parts import Parts
from strategies.base import strategies

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("fedavg", "fedper", "fedrep", "fedbabu", "ditto", "perada", "pfedsim", "feddpa", "local")
EXPERIMENTS = {
    "w1-lora.yaml": ("fedala", *METHODS),
    "w1-cnn.yaml": ("fedala", *METHODS),
    "w1-private.yaml": METHODS,  # FedALA is refused there
}
OVERRIDES = {
    "w1-cnn.yaml": ("data.max_train=100",),
    "w1-private.yaml": ("privacy.deterministic_for_tests=true",),
}


def host(config: str, method: str, fold: str, folder: Path, *overrides: str) -> ClientHost:
    settings = [f"strategy.name={method}", f"training.fold={fold}", *overrides]
    chosen = load_config(CONFIGS / config, settings)
    strategy = strategies.get(method)
    names = strategy.param_names()
    return ClientHost(chosen, strategy.client_side(), names, folder / fold / "state")


@pytest.mark.slow
@pytest.mark.skipif("FEDPERS_DATA" not in os.environ, reason="needs Fashion-MNIST")
@pytest.mark.parametrize(
    ("config", "method"), [(c, m) for c, methods in EXPERIMENTS.items() for m in methods]
)
def test_a_round_of_the_experiments_is_the_same_in_groups(
    config: str, method: str, tmp_path: Path
) -> None:
    alone = host(config, method, "off", tmp_path, *OVERRIDES.get(config, ()))
    groups = host(config, method, "8", tmp_path, *OVERRIDES.get(config, ()))
    assert only_phases(groups.algorithm)
    broadcast = alone.algorithm.initial.only(alone.algorithm.sends)
    broadcasts = dict.fromkeys(alone.data.clients, broadcast)
    expected, found = (one.train_all(broadcasts, 1) for one in (alone, groups))
    assert groups.groups.known == 8
    for client, answer in expected.items():
        other = found[client]
        assert isinstance(answer, tuple) and isinstance(other, tuple)
        assert_close(other[0], answer[0])
        kept = [one.store(client).load_before(PERSONAL, 2) for one in (groups, alone)]
        assert_close(*kept)


def assert_close(found: Parts, expected: Parts) -> None:
    assert found.layouts == expected.layouts
    for name, part in expected.items():
        torch.testing.assert_close(found[name].vector, part.vector, rtol=0, atol=1e-5)
