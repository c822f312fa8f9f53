"""The leak test before a private run: what it is asked, when it is asked again, how it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clients.leaktest.verdict
from clients.leaktest.settings import packages_of, settings
from clients.leaktest.verdict import check_leaks, digest, may_fork
from fedpers.config import Config, load_config
from fedpers.data import FederatedData, load_data
from fedpers.errors import ConfigError

PRIVATE = ("privacy.enabled=true", "model.name=mlp")
Check = Callable[..., None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "leaktest"


@pytest.fixture
def data(small: Any) -> FederatedData:
    return load_data(small("fedavg", *PRIVATE))


@pytest.fixture
def check(small: Any, cache: Path, data: FederatedData) -> Check:
    """``check("fedavg", "rounds=3")``: asks for a verdict."""

    def ask(name: str, *overrides: str, run: str = "run") -> None:
        check_leaks(small(name, *PRIVATE, *overrides), name, (), data, run)

    return ask


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, nothing may be tried any more."""

    def tried(asked: Any) -> Any:
        raise AssertionError("it was known")

    def forbid() -> None:
        for name in ("tried", "_tried_apart"):
            monkeypatch.setattr(clients.leaktest.verdict, name, tried)

    return forbid


def test_a_verdict_is_kept(check: Check, cache: Path, never: Callable[[], None]) -> None:
    check("fedavg")
    (file,) = cache.glob("*.json")
    assert json.loads(file.read_text()) == {"finding": None}
    never()
    check("fedavg", "seed=5", "rounds=7", "privacy.epsilon=3", "training.lr=0.7", run="another")
    with pytest.raises(AssertionError):
        check("fedavg", "training.momentum=0.5")
    file.write_text("{")
    with pytest.raises(AssertionError):
        check("fedavg")  # what is damaged is made anew


LEAKS = """
from clients.methods.fedavg import FedAvg


class Leaks(FedAvg):
    accounted = True

    def conclude(self, working, trainer):
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-3 * trainer.examples.x.mean())}
"""


def test_code_from_outside_is_tried_in_a_process_of_its_own_and_once_a_run(
    check: Check, cache: Path, plugin: Any, never: Callable[[], None], tmp_path: Path
) -> None:
    name = f"{plugin('leaks', LEAKS)}:Leaks"
    line = (
        rf"^strategy\.name: got '{name}', takes a method of which nothing but noised sums depends "
        r"on an example; with one example replaced by another one, part 'head' moves by [\d.e-]+, "
        r"in \d+ of \d+ values \(the answer of client 0 to 'train' in round 1\); let what is sent "
        r"be made of received parts and of what released phases trained$"
    )
    with pytest.raises(ConfigError, match=line):
        check(name)
    assert len([*cache.glob("*.json")]) == 1
    never()
    with pytest.raises(ConfigError, match=line):
        check(name)
    for changed in ({"run": "another"}, {}):
        if not changed:
            (tmp_path / f"{name.partition(':')[0]}.py").write_text(LEAKS + "\n")
        with pytest.raises(AssertionError):
            check(name, **changed)


def test_what_cannot_be_tried_is_refused(
    check: Check, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(asked: Any) -> Any:
        raise RuntimeError("its process died")

    for name in ("tried", "_tried_apart"):
        monkeypatch.setattr(clients.leaktest.verdict, name, tried)
    line = (
        r"^strategy\.name: got 'fedavg', takes a method that can be tried .* \(its process died\)$"
    )
    with pytest.raises(ConfigError, match=line):
        check("fedavg")
    assert [*cache.glob("*.json")] == []


def question(config: Config, *packages: str, run: str = "run") -> str:
    return digest({"config": settings(config, own=not packages)}, packages, run)


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ("seed=4", True),
        ("rounds=9", True),
        ("privacy.epsilon=1", True),
        ("privacy.max_grad_norm=2", True),
        ("training.lr=1", True),
        ("training.batch_size=7", True),
        ("data.partition.alpha=3", True),
        ("strategy.fraction=0.5", True),
        ("encryption.enabled=true", True),
        ("evaluation.every=2", True),
        ("simulation.nodes=3", True),
        ("state=/there", True),
        ("privacy.steps=2", False),
        ("privacy.sampling_rate=0.5", False),
        ("privacy.weights=counts privacy.delta=1e-5", False),
        ("training.fold=4", False),
        ("training.optimizer=adam", False),
        ("model.lora.share=both", False),
        ("model.lora=null", False),
        ("strategy.name=fedper", False),
        ("strategy.max_update_norm=1", False),
    ],
)
def test_our_own_code_is_tried_anew_where_a_setting_matters(setting: str, same: bool) -> None:
    first, second = (load_config(None, [*PRIVATE, *more]) for more in ([], setting.split()))
    assert (question(first) == question(second)) == same


def test_others_code_is_tried_for_all_its_settings() -> None:
    first, second = (load_config(None, [*PRIVATE, *more]) for more in ([], ["seed=4"]))
    assert question(first, "json") != question(second, "json")
    assert question(first, "json") == question(first, "json") != question(first, "json", run="b")


def test_whose_code_a_method_is(plugin: Any) -> None:
    name = plugin("mine", LEAKS)
    config = load_config(None, PRIVATE)
    assert packages_of(config, "fedavg") == []
    assert packages_of(config, f"{name}:Leaks") == [name]
    backbone = plugin(
        "layers", "from fedpers.models.backbones import Mlp as Own\n\n\nclass Net(Own): 0"
    )
    config = load_config(None, [*PRIVATE, f"model.name={backbone}:Net"])
    assert packages_of(config, "fedavg") == [backbone]


def test_a_process_with_several_threads_is_not_forked() -> None:
    import threading

    assert may_fork() or len(os.listdir("/proc/self/task")) > 1
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert not may_fork()
    finally:
        done.set()
        other.join()


def test_where_no_example_is_protected_nothing_is_tried(
    check: Check, cache: Path, never: Callable[[], None]
) -> None:
    never()
    check("fedavg", "privacy.enabled=false")
    check("fedavg", "privacy.unit=client")
    assert not cache.exists()
