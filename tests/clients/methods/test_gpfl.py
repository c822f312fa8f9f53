"""GPFL's valve, conditions and loss, by hand."""

from __future__ import annotations

import math
from typing import Any

import torch

from clients.admission import check_private
from clients.methods.gpfl import conditions
from fedpers.context import Context
from fedpers.models.slots import Valve
from fedpers.outputs import Outputs
from fedpers.parts import Parts


def constant(gamma: float, beta: float) -> Valve:
    """A valve whose gamma and beta are the same for any condition: LayerNorm of weight 0."""
    valve = Valve(2, 2, 0)
    with torch.no_grad():
        for layers, value in ((valve.gamma, gamma), (valve.beta, beta)):
            layers[2].weight.zero_()
            layers[2].bias.fill_(value)
    return valve


def test_the_valve() -> None:
    """ReLU((0.5 + 1) z - 1) of (2, 0.5) is (2, 0)."""
    seen = constant(0.5, -1.0)(torch.tensor([[2.0, 0.5]]), torch.zeros(2))
    torch.testing.assert_close(seen, torch.tensor([[2.0, 0.0]]))


def test_the_conditions_are_those_of_the_embeddings_received(toys: Any) -> None:
    """Label shares (3/5, 2/5) of two examples of class 0 and one of class 1."""
    bound = toys.bind("gpfl", x=[[1.0, 0.0]] * 3, y=[0, 0, 1])
    initial = bound.algorithm.initial
    embedded = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    names = initial["valve"].layout.names if hasattr(initial["valve"].layout, "names") else None
    assert names is None or "valve.embeddings" in names
    model = bound.model
    with torch.no_grad():
        model.get_submodule("valve").embeddings.copy_(embedded)
    valve = model.read("valve")
    working = bound.algorithm.receive(
        Parts({"body": toys.body(torch.eye(2)), "valve": valve}), Parts(), Context("a", 1)
    )
    held = working["conditions"]
    assert held["conditions.personal"].tolist() == held["conditions.general"].tolist() == [0.5, 2.5]
    prepared = bound.algorithm.prepare(working, bound.trainer)["conditions"]
    torch.testing.assert_close(prepared["conditions.personal"], torch.tensor([0.6, 2.0]))
    assert prepared["conditions.general"].tolist() == [0.5, 2.5]
    assert prepared["conditions.embeddings"].tolist() == embedded.tolist()


def test_the_loss(toys: Any) -> None:
    algorithm = toys.bind("gpfl", "strategy.params.lam=0.5").algorithm
    outputs = Outputs(
        torch.zeros(1, 2),
        torch.tensor([[0.0, math.log(3)]]),
        {"cosines": torch.tensor([[1.0, 0.0]]), "apart": torch.tensor([[3.0, 4.0]])},
    )
    expected = -math.log(3 / 4) + math.log(math.e + 1) + 0.5 * 4
    found = algorithm.guided(outputs, torch.tensor([1]), None)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_distances_are_to_the_embeddings_received(toys: Any) -> None:
    bound = toys.bind("gpfl")
    model = bound.model
    model.get_submodule("valve").load_state_dict(constant(0.0, 0.0).state_dict())
    embedded = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    model.write("conditions", conditions(embedded, torch.zeros(2), torch.zeros(2)))
    outputs = bound.algorithm.forward(model, torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(outputs.extra["apart"], torch.tensor([[5.0, 13**0.5]]))


def test_its_private_form_passes_the_plan(toys: Any) -> None:
    check_private("gpfl", toys.bind("gpfl").algorithm)
