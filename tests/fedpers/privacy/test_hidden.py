"""Where state can hide, and that each place is looked into."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpers.privacy.hidden import Untouched, moved, state_of

HERE = __name__.partition(".")[0]
MODULE: list[int] = []


def closed() -> tuple[Callable[[], None], Callable[[], int]]:
    kept = [0]

    def add() -> None:
        kept[0] += 1

    return add, lambda: kept[0]


ADD, GET = closed()


@lru_cache
def cached() -> list[int]:
    return []


class Method:
    shared: dict[str, int] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.tensor, self.array = torch.zeros(2), np.zeros(2)
        self.nested: dict[str, Any] = {"a": [{"b": deque([1])}]}
        self.namespace, self.random = SimpleNamespace(x=0), random.Random(0)
        self.partial = partial(self.defaults, {"n": 0})
        self.get = GET
        self.steps = iter(range(100))

    def defaults(self, given: Any, kept: list[int] = []) -> list[int]:  # noqa: B006
        return kept


ACTS: dict[str, Callable[[Method, nn.Module], object]] = {
    "a tensor": lambda method, model: method.tensor.add_(1),
    "an array": lambda method, model: method.array.__iadd__(1),
    "deep in containers": lambda method, model: method.nested["a"][0]["b"].append(2),
    "a namespace": lambda method, model: setattr(method.namespace, "x", 1),
    "a generator of its own": lambda method, model: method.random.random(),
    "a class": lambda method, model: Method.shared.update(x=len(Method.shared)),
    "a class's attribute": lambda method, model: setattr(Method, "later", 1),
    "a default": lambda method, model: method.defaults({}).append(1),
    "a partial": lambda method, model: method.partial.args[0].update(n=1),
    "a closure": lambda method, model: ADD(),
    "a module": lambda method, model: MODULE.append(1),
    "a cache": lambda method, model: cached().append(1),
    "torch's generator": lambda method, model: torch.rand(1),
    "numpy's generator": lambda method, model: np.random.rand(),
    "Python's generator": lambda method, model: random.random(),
    "a buffer": lambda method, model: model.get_buffer("count").add_(1),
    "a layer's attribute": lambda method, model: setattr(model, "seen", 1),
    "a tensor's attribute": lambda method, model: setattr(model.weight, "seen", 1),
}


def model() -> nn.Module:
    made = nn.Linear(2, 2)
    made.register_buffer("count", torch.zeros(1, dtype=torch.int64))
    return made


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the modules of other tests, which hold what they hold."""
    for name in list(sys.modules):
        if name.partition(".")[0] == HERE and name != __name__:
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("where", ACTS)
def test_state_is_found_wherever_it_is(where: str) -> None:
    method, layers = Method(), model()

    def look() -> dict[str, str]:
        return state_of(method, layers, list(layers.parameters()), [HERE])

    before = look()
    assert moved(before, look()) is None
    ACTS[where](method, layers)
    assert moved(before, look()) is not None


def test_slots_and_others_modules_say_nothing() -> None:
    method, layers = Method(), model()
    before = state_of(method, layers, list(layers.parameters()), [HERE])
    with torch.no_grad():
        layers.weight.add_(1)
    sys.modules["fedpers.config"].__dict__["odd"] = 1
    try:
        assert moved(before, state_of(method, layers, list(layers.parameters()), [HERE])) is None
    finally:
        del sys.modules["fedpers.config"].__dict__["odd"]


def test_what_is_replaced_in_a_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedpers.parts

    untouched = Untouched()
    assert untouched.changed() is None
    for where, name, full in (
        (fedpers.parts, "combine", "fedpers.parts.combine"),
        (fedpers.parts.Parts, "only", "fedpers.parts.Parts.only"),
        (torch.Tensor, "clamp", "torch.Tensor.clamp"),  # hides what it inherits
        (torch.nn.functional, "relu", "torch.nn.functional.relu"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, lambda *_: None)
            assert untouched.changed() == full
        assert untouched.changed() is None


def test_files_and_processes_are_noticed(tmp_path: Path) -> None:
    """In a process of its own: what listens cannot be sent away again."""
    from clients.leaktest.rehearsal import apart

    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()

    def work() -> list[str]:
        import subprocess

        from fedpers.privacy.hidden import watch

        seen = watch(str(inside))
        (inside / "a").write_text("a")
        Path("/dev/null").write_text("a")
        assert seen == []
        Path(__file__).read_text()
        assert seen == []
        outside.write_text("a")
        subprocess.run(["true"], check=True)
        return seen

    seen = apart(work)
    assert seen[0] == f"a file is written, {outside}" and seen[-1] == "a process is started"
