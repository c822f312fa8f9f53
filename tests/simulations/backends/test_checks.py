"""What is refused before a run starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fedpers.config import Config, load_config
from fedpers.errors import ConfigError, FedpersError
from simulations.backends.checks import absolute_paths, check, check_ray


def test_paths_are_those_of_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("a/b.npz", "home/split.npz", "backbone/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    given = ["data.path=a/b.npz", "data.partition.path=~/split.npz", "state=/var/state"]
    config = absolute_paths(load_config(None, [*given, "model.name=hf:backbone"]))
    assert config.data.path == str(tmp_path / "a" / "b.npz")
    assert config.data.partition.path == str(tmp_path / "home" / "split.npz")
    assert (config.state, config.output) == ("/var/state", str(tmp_path / "runs"))
    assert config.model.name == f"hf:{tmp_path / 'backbone'}"
    assert config.encryption.keys is None
    # What is not here may be elsewhere under that name: in FEDPERS_DATA, on the hub.
    assert absolute_paths(load_config(None, ["data.path=c.npz"])).data.path == "c.npz"
    assert absolute_paths(load_config(None, ["model.name=hf:org/x"])).model.name == "hf:org/x"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(None, ["simulation.gpus_per_node=0.5"])
    with pytest.raises(ConfigError) as caught:
        check_ray(config)
    text = "simulation.gpus_per_node: got 0.5, takes 0: no GPU is in sight on this machine"
    assert str(caught.value) == text
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # the cluster may have them
    check_ray(config)


@pytest.mark.parametrize("address", [None, "head:6379"])
def test_more_than_one_gpu_for_a_node_is_refused(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError) as caught:
        check_ray(load_config(None, ["simulation.gpus_per_node=2"]))
    assert str(caught.value) == (
        "simulation.gpus_per_node: got 2.0, takes a number <= 1: a node computes on one GPU; "
        "raise simulation.nodes instead"
    )


def test_bfloat16_under_example_level_privacy_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"training\.precision: got 'bfloat16', takes float32"):
        check(load_config(None, ["privacy.enabled=true", "training.precision=bfloat16"]))


def test_more_cores_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cores = os.cpu_count() or 1
    check_ray(load_config(None, [f"simulation.cpus_per_node={cores}"]))
    with pytest.raises(ConfigError, match=r"simulation\.cpus_per_node"):
        check_ray(load_config(None, [f"simulation.cpus_per_node={cores + 1}"]))


def test_the_defaults_pass() -> None:
    check(Config())


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["privacy.enabled=true", "privacy.delta=0.5"], "privacy.delta: got 0.5, takes a number <"),
        (["privacy.enabled=true", "strategy.name=fedala"], "strategy.name: got 'fedala', takes"),
        (["encryption.enabled=true", "encryption.keys=/no/such"], "takes a folder with client.key"),
        (["strategy.name=nosuch"], "strategy.name: got 'nosuch'"),
        (["strategy.params.nosuch=1"], "strategy.params.nosuch: got 1"),
        (["data.name=npz", "data.path=/no/such.npz"], "/no/such.npz"),
        (["data.clients=100000"], "clients"),
        (["strategy.min_clients=21"], "strategy.min_clients: got 21, takes an integer <= 20"),
    ],
)
def test_what_cannot_work_is_one_line(overrides: list[str], text: str) -> None:
    with pytest.raises(FedpersError) as caught:
        check(load_config(None, overrides))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


TELLS = """
from clients.base import LocalAlgorithm
from fedpers.stats import Stat
from strategies.base import PersonalizedStrategy


class Tells(LocalAlgorithm):
    reports = (Stat("fit", 0, 1),)


class Server(PersonalizedStrategy):
    algorithm = "one_sided:Tells"


class Wider(Server):
    reports = (Stat("fit", 0, 2),)


class Same(Server):
    reports = Tells.reports
"""


def test_sides_that_declare_other_numbers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one_sided.py").write_text(TELLS)
    monkeypatch.syspath_prepend(tmp_path)
    line = "strategy.name: got 'one_sided:{}', takes a method whose reports are the same on both "
    line += "sides: its clients' are fit in 0..1, its server's {}"
    for name, read in (("Server", "none"), ("Wider", "fit in 0..2")):
        with pytest.raises(ConfigError) as refused:
            check(load_config(None, [f"strategy.name=one_sided:{name}", "data.clients=2"]))
        assert str(refused.value) == line.format(name, read)
    check(load_config(None, ["strategy.name=one_sided:Same", "data.clients=2"]))
