"""Clients on a device that is not the CPU, without one: tensors that hold their values but refuse
to meet a CPU's, as a GPU's do. What is computed must be what the CPU computes, bit for bit.

Not covered here: a GPU's own generator, its kernels, autocast and memory. See ``test_gpu.py``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from clients.node import host as hosts
from clients.node.host import ClientHost
from clients.training.trainer import Trainer
from fedpers.config import Config
from fedpers.context import Context
from fedpers.parts import Parts

ELSEWHERE = torch.device("meta")  # which autograd serves in the calling thread
MOVES = {"aten::_to_copy", "aten::copy_"}
WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero"}
Small = Callable[..., Config]


class Away(torch.Tensor):
    """A tensor elsewhere; its values are in ``here``."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of the device")


class Device(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes on tensors elsewhere, refuses to mix them with the CPU's, and counts how often the
    CPU waits for a value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        away = [x for x in given if isinstance(x, Away)]
        there = bool(away)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]) == ELSEWHERE
            kwargs["device"] = "cpu"
        if name in MOVES:
            there = isinstance(args[0], Away) if name == "aten::copy_" else there
            if away and not there:
                self.waits[name] += 1
            if not away and there and not kwargs.get("non_blocking"):
                self.waits["blocking move"] += 1
        else:
            strangers = [x for x in given if not isinstance(x, Away) and x.ndim]
            if name == "aten::index" and isinstance(args[0], Away):
                strangers = []  # a GPU's rows may be chosen by indices on the CPU
            assert not (there and strangers), f"{name}: a CPU tensor meets one elsewhere"
            assert not (there and kwargs.get("generator")), f"{name}: a generator of the CPU"
        if name in WAITS and away:
            self.waits[name] += 1
        here = tree_map_only(Away, lambda x: x.here, (args, kwargs))
        found = func(*here[0], **here[1])
        same = {id(x.here): x for x in away}

        def back(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return same[id(x)] if id(x) in same else Away(x) if there else x

        return tree_map(back, found)


@pytest.fixture
def device() -> Device:
    """Entered by a test."""
    return Device()


def test_a_tensor_of_the_cpu_does_not_meet_one_elsewhere(device: Device) -> None:
    with device:
        there = torch.arange(3.0).to(ELSEWHERE)
        assert isinstance(there, Away) and there.device == ELSEWHERE
        assert (2 * there + there.sum()).cpu().tolist() == [3.0, 5.0, 7.0]
        with pytest.raises(AssertionError, match="a CPU tensor meets one elsewhere"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="a CPU tensor meets one elsewhere"):
            torch.ones(3)[there.long()]
        with pytest.raises(AssertionError, match="a generator of the CPU"):
            torch.normal(0.0, 1.0, (3,), generator=torch.Generator(), device=ELSEWHERE)


def rounds(host: ClientHost, count: int) -> list[Any]:
    """All that a server is told in some rounds, and in the evaluation after them."""
    torch.manual_seed(7)
    initial = host.algorithm.initial.only(host.algorithm.sends)
    parts = {
        n: p.like(p.vector if n == "prior" else p.vector + 0.1 * torch.randn(len(p.vector)))
        for n, p in initial.items()
    }
    told: list[Any] = []
    for server_round in range(1, count + 1):
        answers = host.train_all(dict.fromkeys("0123", Parts(parts)), server_round)
        for answer in answers.values():
            assert isinstance(answer, tuple), answer
            assert not any(isinstance(part.vector, Away) for part in answer[0].values())
            told += [answer[0].digest(), answer[1]]
    assert host.train_baselines("01") == {}
    told += [host.evaluate(client, count, Parts(parts)) for client in "0123"]
    return [*told, host.newcomer("0", count, Parts(parts), 2)]


PRIVATE = ("privacy.enabled=true", "privacy.deterministic_for_tests=true")
CASES = [
    ("fedavg", "off", ("model.cache=false", "model.lora=null")),
    ("ditto", "3", ("training.momentum=0.5",)),
    ("ditto", "off", PRIVATE),
    ("ditto", "3", PRIVATE),
    ("fedcp", "off", ()),
]
OTHERS = [
    ("ditto", "off", ("training.optimizer=adam",)),
    ("prior", "off", PRIVATE),
    *((method, "off", ()) for method in ("apfl", "fedala", "fedbabu", "feddpa", "intercept")),
]


def test_a_trainer_moves_the_examples_that_it_is_given(toys: Any, device: Device) -> None:
    bound = toys.bind("fedavg")
    working = bound.algorithm.receive(
        toys.parts(torch.eye(2), torch.ones(2, 2)), Parts(), Context("a", 1)
    )
    expected = bound.algorithm.train(working, bound.trainer)
    with device:
        model = bound.model.to(ELSEWHERE)
        given = bound.trainer.examples
        trainer = Trainer(bound.config, model, bound.algorithm, given, server_round=1, client="a")
        assert bound.algorithm.train(working, trainer).digest() == expected.digest()


@pytest.mark.parametrize(
    ("method", "fold", "overrides"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_clients_elsewhere_answer_what_those_on_the_cpu_do(
    method: str,
    fold: str,
    overrides: tuple[str, ...],
    small: Small,
    tmp_path: Path,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "fedpers")
    config = small(method, f"training.fold={fold}", *overrides)
    expected = rounds(ClientHost(config, method, ["gate_width"], tmp_path / "cpu" / "state"), 2)
    monkeypatch.setattr(hosts, "device_for", lambda gpus: ELSEWHERE)
    with device:
        host = ClientHost(config, method, ["gate_width"], tmp_path / "away" / "state")
        assert host.model.device == ELSEWHERE
        assert rounds(host, 2) == expected
        assert isinstance(host.examples.client("0").train.x, Away)
    assert "failed in a group" not in caplog.text
    assert host.groups.known == (1 if fold == "off" else int(fold))


@pytest.mark.parametrize("privacy", [(), PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("fold", ["off", "3"])
def test_no_step_waits_for_a_value(
    fold: str,
    privacy: tuple[str, ...],
    small: Small,
    tmp_path: Path,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "device_for", lambda gpus: ELSEWHERE)
    waits = []
    with device:
        for steps in (1, 4):
            more = (f"training.epochs={steps}", f"privacy.steps={steps}")
            config = small("ditto", f"training.fold={fold}", *more, *privacy)
            host = ClientHost(config, "ditto", [], tmp_path / str(steps) / "state")
            parts = host.algorithm.initial.only(host.algorithm.sends)
            host.train_all(dict.fromkeys("012", parts), 1)  # what is moved and tried once
            device.waits.clear()
            host.train_all(dict.fromkeys("012", parts), 2)
            waits.append(dict(device.waits))
    assert waits[0] == waits[1]
