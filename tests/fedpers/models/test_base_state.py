"""What a device gets of a model besides the slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedpers.config import Config
from fedpers.data import Examples, FederatedData, Table
from fedpers.errors import ClientError
from fedpers.models import build_model
from fedpers.models.base_state import made_from_public_data, read_base
from fedpers.parts import Part, Parts
from fedpers.records import pack, unpack
from fedpers.tasks import Classification

CLUSTERS = ("model.pretrain.task=clusters", "model.pretrain.clusters=8", "model.pretrain.epochs=1")


def without_public(data: FederatedData) -> FederatedData:
    """A device's: of the same task, with other examples."""
    other = Examples(data.public.x + 1, data.public.y)
    table = Table(data.signature.kind, other, task=Classification.numbered(10))
    return FederatedData(table, np.arange(0), {}, Config())


@pytest.mark.parametrize(
    ("name", "kind", "overrides"),
    [
        ("mlp", "image", (*CLUSTERS, "model.standardise=true")),
        ("mlp", "image", (*CLUSTERS, "model.lora.share=both")),
        ("mlp", "tabular", (*CLUSTERS, "model.lora=null")),
        ("vit-tiny", "image", ("model.pretrain.task=labels", "model.pretrain.epochs=1")),
        ("conv1d", "signal", (*CLUSTERS, "model.lora.share=a-only")),
    ],
)
def test_a_devices_model_is_the_servers_bit_for_bit(
    make_config: Any, make_data: Any, name: str, kind: str, overrides: tuple[str, ...]
) -> None:
    config, data = make_config(name, *overrides), make_data(kind)
    server = build_model(config, data)
    (base,), _ = unpack(pack([read_base(server)], {}))  # on the way to the device
    assert isinstance(base, Parts)
    device = build_model(config, without_public(data), base)
    ours, theirs = server.state_dict(), device.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    x = data.public.x[:5]
    assert torch.equal(server(x).logits, device(x).logits)
    # Without the base it would be another model.
    lora = [o for o in overrides if o.startswith("model.lora")]
    bare = build_model(make_config(name, *lora), without_public(data)).state_dict()
    assert any(not torch.equal(ours[name], tensor) for name, tensor in bare.items())


@pytest.mark.parametrize(
    "other", [{}, {"base": {"w": torch.zeros(3)}}, {"body": {"w": torch.zeros(3)}}]
)
def test_another_models_base_is_refused(
    make_config: Any, make_data: Any, other: dict[str, dict[str, torch.Tensor]]
) -> None:
    config, data = make_config("mlp", *CLUSTERS), make_data("image")
    base = Parts({name: Part.of(tensors) for name, tensors in other.items()})
    with pytest.raises(ClientError, match=r"^base: got another model's tensors"):
        build_model(config, without_public(data), base)


def test_a_wider_models_base_is_refused(make_config: Any, make_data: Any) -> None:
    image, data = make_config("mlp", *CLUSTERS), make_data("image")
    wider = build_model(image, make_data("image", (1, 9, 9)))
    with pytest.raises(ClientError, match=r"^base: got another model's tensors"):
        build_model(image, without_public(data), read_base(wider))


def test_when_a_base_is_needed(make_config: Any) -> None:
    assert not made_from_public_data(make_config("mlp"))
    assert made_from_public_data(make_config("mlp", "model.standardise=true"))
    assert made_from_public_data(make_config("mlp", *CLUSTERS))
