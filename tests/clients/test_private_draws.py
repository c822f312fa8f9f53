"""What a private client draws besides noise: in a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.fedavg import FedAvg
from fedpers.data import ClientData
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Parts


def test_what_is_random_in_a_private_forward_pass_is_nobodys_to_know(
    toys: Any, tmp_path: Path
) -> None:
    # FedCP's Gumbel noise goes by the place in the batch: with draws that the server can repeat,
    # an example more would change what all the others contribute.
    def sent(*settings: str, seed: int = 0) -> Tensor:
        bound = toys.bind("fedcp", "privacy.enabled=true", f"seed={seed}", *settings)
        own = bound.trainer.examples
        bound.trainer.account = toys.quiet(
            bound.config, bound.algorithm, ClientData(own, own, own), tmp_path
        )
        slots = ("body", "head", "gate")
        broadcast = toys.random(bound.algorithm, slots, seed=1)
        start = bound.algorithm.receive(broadcast, Parts())
        working = bound.algorithm.train(start, bound.trainer)
        return torch.cat([part.vector for part in bound.algorithm.upload(working).values()])

    fixed = "privacy.deterministic_for_tests=true"
    assert torch.equal(sent(fixed), sent(fixed))
    assert not torch.equal(sent(), sent())


def test_a_private_forward_pass_that_draws_from_torchs_generator_is_refused(
    toys: Any, tmp_path: Path
) -> None:
    class Shaken(FedAvg):
        def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
            return model(x + 0.1 * torch.rand_like(x) if training else x)

    bound = toys.bind("fedavg", "privacy.enabled=true")
    own = bound.trainer.examples
    algorithm = Shaken(bound.config, bound.model, bound.algorithm.params)
    bound.trainer.algorithm = algorithm
    working = algorithm.receive(toys.parts(torch.eye(2), torch.zeros(2, 2)), Parts())
    algorithm.train(working, bound.trainer)  # plainly it may
    bound.trainer.account = toys.quiet(bound.config, algorithm, ClientData(own, own, own), tmp_path)
    with pytest.raises(ClientError, match=r"torch's generator.*; draw by model\.uniform$"):
        algorithm.train(working, bound.trainer)
    assert bound.model.source is None
