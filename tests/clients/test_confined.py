"""What a method may do in a private run: hold no state, see examples in training alone, and count
each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.admission import check_private
from clients.base import LocalAlgorithm
from clients.node.host import ClientHost
from clients.node.store import ClientStore
from clients.training.account import LABELS, Account
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers.context import Context
from fedpers.data import ClientData
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.privacy.noise import Source

PRIVATE = ("privacy.enabled=true", "privacy.epsilon=4")


def hosted(small: Any, tmp_path: Path, name: str, *overrides: str) -> ClientHost:
    (tmp_path / "run").mkdir(parents=True, exist_ok=True)
    config = small(name, *overrides)
    return ClientHost(config, name, (), tmp_path / "run" / "state")


STATEFUL = """
from clients.base import LocalAlgorithm


class Stateful(LocalAlgorithm):
    def __init__(self, config, model, params):
        super().__init__(config, model, params)
        self.seen, self.pairs, self.names = [1, [2]], {"a": {"b": [3]}}, {"x"}

    def receive(self, broadcast, personal, context):
        getattr(self, "act")(self)
        return super().receive(broadcast, personal, context)

    act = staticmethod(lambda self: None)


def assigns(self):
    self.last = 1


def deletes(self):
    del self.seen


def appends(self):
    self.seen.append(4)


def appends_deeper(self):
    self.seen[1].append(4)


def sets_a_key(self):
    self.pairs["c"] = 5


def sets_a_deeper_key(self):
    self.pairs["a"]["b"].append(5)


def adds(self):
    self.names.add("y")
"""


@pytest.mark.parametrize(
    ("act", "says"),
    [
        ("assigns", "Stateful.last: a method holds no state under privacy"),
        ("deletes", "Stateful.seen: a method holds no state under privacy"),
        ("appends", "'tuple' object has no attribute 'append'"),
        ("appends_deeper", "'tuple' object has no attribute 'append'"),
        ("sets_a_key", "'mappingproxy' object does not support item assignment"),
        ("sets_a_deeper_key", "'tuple' object has no attribute 'append'"),
        ("adds", "'frozenset' object has no attribute 'add'"),
    ],
)
def test_a_method_holds_no_state_in_a_private_run(
    small: Any, tmp_path: Path, plugin: Any, monkeypatch: pytest.MonkeyPatch, act: str, says: str
) -> None:
    import importlib

    name = plugin("stateful", STATEFUL)
    module = importlib.import_module(name)
    monkeypatch.setattr(module.Stateful, "act", staticmethod(getattr(module, act)))
    with pytest.raises((ClientError, AttributeError, TypeError), match=says):
        hosted(small, tmp_path, f"{name}:Stateful", *PRIVATE)
    free = hosted(small, tmp_path / "free", f"{name}:Stateful")
    free.train("0", 1, free.algorithm.initial)


def test_a_method_cannot_thaw_itself(toys: Any) -> None:
    class Thaws(LocalAlgorithm):
        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

    class Never(LocalAlgorithm):
        def freeze(self) -> None:
            pass

    bound = toys.bind("fedavg", *PRIVATE)
    for kind in (Thaws, Never):
        with pytest.raises(ConfigError, match="with privacy a method without a "):
            check_private("thaws", kind(bound.config, toys.model(), None))


def test_predictions_and_derived_parts_come_from_the_model_alone(
    small: Any, tmp_path: Path, plugin: Any
) -> None:
    name = plugin(
        "looks",
        """
from clients.methods.perada import PerAda

seen = []


class Looks(PerAda):
    def predict(self, mode, working, x, view, split):
        seen.append(view)
        return super().predict(mode, working, x, view, split)

    def derived(self, name, upload, view, public):
        seen.append(view)
        return super().derived(name, upload, view, public)
""",
    )
    import importlib

    module = importlib.import_module(name)
    host = hosted(small, tmp_path, f"{name}:Looks", *PRIVATE)
    broadcast = host.algorithm.initial.only(("body", "head"))
    upload, _ = host.train("0", 1, broadcast, also=("logits",))
    assert set(upload) == {"body", "head", "logits"}
    host.evaluate("0", 1, broadcast)
    assert len(module.seen) >= 3
    plain, train = {"model", "algorithm", "device", "task"}, host.examples.client("0").train.x
    assert type(module.seen[0]) is ModelView and set(vars(module.seen[0])) == plain
    for view in module.seen[1:]:
        assert set(vars(view)) == plain | {"_splits", "_sizes", "_filled", "_found"}
        assert not any((row == train).all(1).any() for x in view._splits for row in x)
    with pytest.raises(ClientError, match=r"derived: got part 'rows', takes logits$"):
        host.train("1", 1, broadcast, also=("rows",))


def test_a_slot_that_nothing_fills_is_refused(toys: Any) -> None:
    """Else the model would compute with what it was last used for."""
    bound = toys.bind("fedavg")
    working = bound.algorithm.receive(bound.algorithm.initial, Parts(), Context("a", 1))
    with pytest.raises(ClientError, match=r"^model: nothing is said to fill the slot 'head'$"):
        bound.trainer.outputs({"body": "body"}, working, torch.zeros(1, 2))


class Witness(Source):
    """Adds no noise, and notes what it is shown."""

    def __init__(self) -> None:
        super().__init__(bytes(32))
        self.rows: list[Tensor] = []
        self.factors: list[Tensor] = []

    def witness(self, rows: Sequence[Tensor], factors: Tensor) -> None:
        self.rows += rows
        self.factors.append(factors)

    def noised(self, total: Tensor, deviation: float) -> Tensor:
        return total


def counting(toys: Any, tmp_path: Path) -> tuple[Trainer, Witness]:
    bound, witness = toys.bind("prior", *PRIVATE), Witness()
    examples = bound.trainer.examples
    data = ClientData(examples, examples.take(torch.arange(0)), examples.take(torch.arange(0)))
    account = Account(
        bound.config,
        bound.algorithm.releases(),
        "a",
        data,
        tmp_path,
        ClientStore(tmp_path, "a"),
        lambda *path: witness,
    )
    account.charge(LABELS)
    bound.trainer.account = account
    return bound.trainer, witness


def test_an_example_adds_no_more_than_one_to_counts(toys: Any, tmp_path: Path) -> None:
    trainer, witness = counting(toys, tmp_path)
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.3, 0.4], [float("inf"), 0.0]])
    # (3, 4) is clipped to (.6, .8); what is not finite adds nothing.
    counts = trainer.release_counts(rows)
    torch.testing.assert_close(counts, torch.tensor([1.9, 1.2]))
    torch.testing.assert_close(witness.factors[0][:3], torch.tensor([0.2, 1.0, 1.0]))
    assert torch.equal(witness.rows[0][:3], rows[:3])
    assert witness.rows[0][3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(2,), (3, 2), (8, 2), (4, 2, 1)])
def test_counts_have_one_row_an_example(toys: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    trainer, _ = counting(toys, tmp_path)
    with pytest.raises(ClientError, match=r"^counts: got .* takes what each example adds, \[4, C"):
        trainer.release_counts(torch.ones(shape))


def test_without_privacy_counts_are_plain_sums(toys: Any) -> None:
    trainer = toys.bind("prior").trainer
    assert trainer.release_counts(torch.full((4, 2), 5.0)).tolist() == [20.0, 20.0]
