"""A model's tensors as they are before the first round, where they were made from public data.

A device has no public data. It gets the tensors from the server, once.
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
    model = config.model
    return model.standardise or model.pretrain.task != "none" or model.whiten == "public"


def read_base(model: PersonalModel) -> Parts:
    """The tensors of a model as it was built, before a method adds slots, as one part.

    The slots' own are among them: personal models start there.
    """
    return Parts({BASE: Part.of(_tensors(model))})


@torch.no_grad()
def write_base(model: PersonalModel, base: Parts) -> None:
    """Copy such tensors into a model built from the same settings.

    Raises:
        ClientError: they are another model's.
    """
    tensors = _tensors(model)
    takes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    if BASE not in base or base[BASE].layout.shapes != takes:
        raise ClientError("base: got another model's tensors, takes those of these settings")
    for name, tensor in tensors.items():
        tensor.copy_(base[BASE][name])


def _tensors(model: PersonalModel) -> dict[str, torch.Tensor]:
    return {n: tensor for n, tensor in model.state_dict().items() if tensor.is_floating_point()}
