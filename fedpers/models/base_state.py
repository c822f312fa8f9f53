"""What a model has besides its slots: frozen, the same everywhere, and made from public data.

A device has no public data. It gets the frozen tensors from the server, once.
"""

from __future__ import annotations

import torch

from fedpers.config import Config
from fedpers.errors import ClientError
from fedpers.models.personal import PersonalModel
from fedpers.parts import Part, Parts

BASE = "base"


def made_from_public_data(config: Config) -> bool:
    """Whether a model cannot be built from the settings alone."""
    return config.model.standardise or config.model.pretrain.task != "none"


def read_base(model: PersonalModel) -> Parts:
    """The frozen tensors of a model, as one part."""
    return Parts({BASE: Part.of(_frozen(model))})


@torch.no_grad()
def write_base(model: PersonalModel, base: Parts) -> None:
    """Copy frozen tensors into a model of the same settings.

    Raises:
        ClientError: they are another model's.
    """
    tensors = _frozen(model)
    takes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    if BASE not in base or base[BASE].layout.shapes != takes:
        raise ClientError("base: got another model's tensors, takes those of these settings")
    for name, tensor in tensors.items():
        tensor.copy_(base[BASE][name])


def _frozen(model: PersonalModel) -> dict[str, torch.Tensor]:
    slots = {tensor.data_ptr() for slot in model.slots.values() for tensor in slot.values()}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and tensor.data_ptr() not in slots
    }
