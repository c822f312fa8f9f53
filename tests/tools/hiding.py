"""A method, and all the places in which it can keep what it saw: in a module of its own, as what
lies beside it is looked into too, and pytest hangs its whole session on a module of tests."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

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
