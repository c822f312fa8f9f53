"""The client halves of methods from outside, by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clients.node.answers import answer
from clients.node.host import ClientHost
from fedpers.config import Config
from fedpers.context import Context
from fedpers.parts import Part, Parts
from fedpers.parts import bank as bank_of
from fedpers.seeding import torch_generator

HERE = Path(__file__).parents[2] / "outside"
BOTH = ("body", "head")


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(HERE)
    yield
    for name in ("pfedhn", "ifca", "perfedavg"):
        sys.modules.pop(name, None)


# -- pFedHN ------------------------------------------------------------------------------------


def test_each_client_trains_the_model_that_was_made_for_it(
    small: Callable[..., Config], tmp_path: Path
) -> None:
    """What it changes is the gradient step that the server pulls back through its network."""
    config = small("fedavg", "training.batch_size=100", "training.fold=off", "training.lr=0.5")
    host = ClientHost(config, "fedavg", (), tmp_path / "state")
    start, rows = host.algorithm.initial, []
    for k in (1, 2):
        drawn = torch.Generator().manual_seed(k)
        rows.append(
            Parts(
                {
                    n: p.like(p.vector + 0.1 * torch.randn(p.layout.size, generator=drawn))
                    for n, p in start.items()
                }
            )
        )
    body = {"clients": ["0", "1"], "rows": {"0": 0, "1": 1}, "round": 1}
    updates, _ = answer("train", host, [*rows], body)
    (phase,) = host.algorithm.phases()
    for client, row, update in zip("01", rows, updates, strict=True):
        trainer = host.trainer(client, 1)
        working = host.algorithm.receive(row, Parts(), Context(client, 1))
        everything = torch.arange(len(trainer.examples))
        gradient, _ = trainer.gradient(phase, working, everything)
        assert isinstance(update, Parts)
        for slot in BOTH:
            moved = update[slot].vector - row[slot].vector
            torch.testing.assert_close(moved, -0.5 * gradient[slot].vector, rtol=1e-3, atol=1e-5)


# -- IFCA --------------------------------------------------------------------------------------


def test_a_client_trains_and_sends_the_copy_that_fits_it(toys: Any) -> None:
    # The scores of (1, 0), of class 1, under the heads: (1, 0), (0, 1), and (0, 0).
    bound = toys.bind("ifca:Chooser", x=[[1.0, 0.0]], y=[1])
    algorithm = bound.algorithm
    assert list(algorithm.declared) == [f"{slot}@{k}" for slot in BOTH for k in range(3)]
    crafted = ([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    heads = [toys.head(weight) for weight in crafted]
    bodies = {f"body@{k}": toys.body(torch.eye(2)) for k in range(3)}
    broadcast = Parts(bodies | {f"head@{k}": head for k, head in enumerate(heads)})
    working = algorithm.receive(broadcast, Parts(), Context("a", 1))
    assert working["head"] is heads[0] and working["received.head@1"] is heads[1]
    trained = algorithm.train(working, bound.trainer)
    upload = algorithm.upload(trained)
    assert list(upload) == ["body@1", "head@1"]
    assert algorithm.report(trained, bound.trainer) == {"cluster": 1}
    # The softmax of (0, 1) less one for class 1 is (s, -s) with s = 1 / (1 + e).
    step = 0.1 * 0.26894143
    expected = torch.tensor([[-step, 1.0], [1.0 + step, 0.0]])
    torch.testing.assert_close(upload["head@1"]["head.weight"], expected)
    # The prediction is by the copy that fits; a newcomer's too, and without examples by the first.
    for batches, sure in ((None, [0.0, 1.0]), (0, [0.0, 1.0])):
        tuned = algorithm.tune(working, bound.trainer, batches)
        scores = algorithm.predict("personal", tuned, torch.eye(2)[:1], bound.trainer, "test")
        assert scores.tolist() == [sure]
    assert algorithm.filled("global") is None
    nobody = toys.bind("ifca:Chooser", x=[], y=[])
    assert nobody.algorithm.tune(working, nobody.trainer)["head"] is heads[0]


def test_a_host_sends_a_part_of_the_bank(small: Callable[..., Config], tmp_path: Path) -> None:
    config = small("ifca:Chooser", "training.fold=4")
    host = ClientHost(config, "ifca:Chooser", (), tmp_path / "state")
    copies = dict[str, Part]()
    for slot in BOTH:
        start = host.algorithm.initial[slot]
        noise = 0.1 * torch.randn(3, start.layout.size, generator=torch_generator(0, slot))
        copies |= bank_of(slot, [start.like(start.vector + moved) for moved in noise])
    bank = Parts(copies)
    for client in "0123":
        update, report = host.train(client, 1, bank)
        (chosen,) = {name.partition("@")[2] for name in update}
        assert list(update) == [f"body@{chosen}", f"head@{chosen}"]
        assert client != "3" or chosen == "0"  # it has no examples
        told = {"method": {"cluster": int(chosen)}} if client != "3" else {}
        assert {n: report[n] for n in report if n not in ("examples", "loss")} == told
        moved = [not torch.equal(update[n].vector, bank[n].vector) for n in update]
        assert all(moved) == (client != "3")
    host.evaluate("0", 1, bank, common=False)
    before, after = (host.newcomer("1", 1, bank, batches) for batches in (0, 40))
    assert before.test.to_json() != after.test.to_json()


# -- Per-FedAvg ----------------------------------------------------------------------------------


def test_the_outer_gradient_is_taken_after_an_inner_step(toys: Any) -> None:
    settings = ["strategy.params={alpha: 0.3, beta: 0.2}", "training.batch_size=2"]
    bound = toys.bind("perfedavg:Meta", *settings)
    algorithm, trainer = bound.algorithm, bound.trainer
    received = toys.random(algorithm, BOTH, seed=4)
    working = algorithm.receive(received, Parts(), Context("a", 1))
    first, second = trainer.batches(algorithm.phases()[0])
    after = algorithm.train(working, trainer)

    def slopes(w: list[torch.Tensor], batch: torch.Tensor) -> list[torch.Tensor]:
        w = [tensor.clone().requires_grad_(True) for tensor in w]
        x, y = trainer.examples.x[batch], trainer.examples.y[batch]
        loss = F.cross_entropy(x @ w[0].T @ w[1].T + w[2], y)
        return list(torch.autograd.grad(loss, w))

    start = [received["body"]["trunk.weight"], *received["head"].values()]
    near = [w - 0.3 * g for w, g in zip(start, slopes(start, first), strict=True)]
    end = [w - 0.2 * g for w, g in zip(start, slopes(near, second), strict=True)]
    torch.testing.assert_close(after["body"]["trunk.weight"], end[0])
    for name, tensor in zip(after["head"], end[1:], strict=True):
        torch.testing.assert_close(after["head"][name], tensor)


def test_clients_and_newcomers_adapt_by_steps_of_alpha(toys: Any) -> None:
    # The head starts at zero and the example is (1, 2) of class 0: a step adds alpha / 2 times it.
    bound = toys.bind("perfedavg:Meta", "strategy.params.alpha=0.3", x=[[1.0, 2.0]], y=[0])
    algorithm = bound.algorithm
    received = toys.parts(torch.eye(2), torch.zeros(2, 2))
    working = algorithm.receive(received, Parts(), Context("a", 1))
    step = torch.tensor([[0.15, 0.3], [-0.15, -0.3]])
    for batches in (None, 1):
        tuned = algorithm.tune(working, bound.trainer, batches)
        torch.testing.assert_close(tuned["head"]["head.weight"], step)
    assert algorithm.tune(working, bound.trainer, 0) is working
    assert algorithm.keep(working) == Parts()  # a step starts from what came, each time
