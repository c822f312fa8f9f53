"""The resident model, filled with a client's parts and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Parts

EVALUATION_BATCH = 256  # what stays in a core's cache; 1024 takes an eighth longer


class ForwardPass(Protocol):
    """What of a method is needed to compute with a model: see ``clients.base.LocalAlgorithm``."""

    slots: tuple[str, ...]

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """The outputs for a batch x of the model, filled as it is."""


class ModelView:
    """Runs one resident model, and sees neither examples nor the account.

    Args:
        model: the resident model; its slots are overwritten.
        algorithm: the method, for its forward pass.
    """

    def __init__(self, model: PersonalModel, algorithm: ForwardPass) -> None:
        self.model, self.algorithm = model, algorithm
        self.device, self.task = model.device, model.task

    def outputs(self, filling: Mapping[str, str], working: Parts, x: Tensor) -> Outputs:
        """Features [n, d] and scores [n, ...] of the model filled with working parts, on its
        device.

        Raises:
            ClientError: a slot is not filled, and would hold what was there before.
        """
        self._fill(filling, working)
        with torch.no_grad():
            pieces = [
                self.algorithm.forward(self.model, piece.to(self.device))
                for piece in torch.split(x, EVALUATION_BATCH)
            ]
        return Outputs.cat(pieces)

    def _fill(self, filling: Mapping[str, str], working: Parts) -> None:
        if missing := [slot for slot in self.algorithm.slots if slot not in filling]:
            raise ClientError(f"model: nothing is said to fill the slot {missing[0]!r}")
        fill(self.model, filling, working)


def fill(model: PersonalModel, filling: Mapping[str, str], working: Parts) -> None:
    """Write working parts into the model's slots."""
    for slot, part in filling.items():
        model.write(slot, working[part])
