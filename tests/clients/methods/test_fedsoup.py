"""FedSoup's choice, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clients.admission import check_private
from clients.training.trainer import Trainer
from fedpers.context import Context
from fedpers.data import Examples
from fedpers.parts import Part, Parts

X, Y = [[1.0, 0.0]], [0]


def concluded(toys: Any, validation: int, *, server_round: int = 4) -> Parts:
    """Trained bias (1, 0), soup of one (2, 0), received (0, 6): own is (1.5, 0), wider (1, 2)."""
    bound = toys.bind("fedsoup", "rounds=4", "strategy.params.start=0.5", x=X, y=Y)
    held = Examples(torch.tensor([[1.0, 0.0]]), torch.tensor([validation]))
    trainer = Trainer(
        *(bound.config, bound.model, bound.algorithm, bound.trainer.examples),
        server_round=server_round,
        client="a",
        validation=held,
    )

    def model(*bias: float) -> Parts:
        made: Parts = toys.parts(torch.eye(2), torch.zeros(2, 2), [float(b) for b in bias])
        return made

    own = Parts({f"personal.soup.{slot}": part for slot, part in model(2, 0).items()})
    own = own | {"personal.models": Part.of({"models": torch.ones(1)})}
    working = bound.algorithm.receive(model(0, 6), own, Context("a", server_round))
    found: Parts = bound.algorithm.conclude(working | model(1, 0), trainer)
    assert found["head"]["head.bias"].tolist() == [1, 0]  # what is sent is what was trained
    return found


def test_a_global_model_that_helps_enters(toys: Any) -> None:
    found = concluded(toys, validation=1)
    assert found["personal.head"]["head.bias"].tolist() == [1, 2]
    assert found["personal.soup.head"]["head.bias"].tolist() == [1, 3]  # (2, 0) and (0, 6)
    assert float(found["personal.models"].vector) == 2


def test_one_that_does_not_stays_out(toys: Any) -> None:
    found = concluded(toys, validation=0)
    assert found["personal.head"]["head.bias"].tolist() == [1.5, 0]
    assert found["personal.soup.head"]["head.bias"].tolist() == [2, 0]
    assert float(found["personal.models"].vector) == 1


def test_before_the_start_the_model_is_the_one_trained(toys: Any) -> None:
    found = concluded(toys, validation=1, server_round=2)
    assert found["personal.head"]["head.bias"].tolist() == [1, 0]
    assert float(found["personal.models"].vector) == 1


@pytest.mark.parametrize("privacy", [(), ("privacy.enabled=true",)])
def test_its_private_form_passes_the_plan(toys: Any, privacy: tuple[str, ...]) -> None:
    check_private("fedsoup", toys.bind("fedsoup", *privacy).algorithm)
