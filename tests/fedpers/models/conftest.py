"""Small data and settings for the tests of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpers.config import Config, load_config
from fedpers.data import Examples, FederatedData, Table
from fedpers.models import PersonalModel

SHAPES = {"image": (1, 8, 8), "signal": (3, 20), "tabular": (7,), "text": (2, 6)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDPERS_CACHE", str(folder))
    return folder


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """``make_config("mlp", "rounds=3")``: settings with a model name."""
    return lambda name, *overrides: load_config(None, [f"model.name={name}", *overrides])


@pytest.fixture
def make_data() -> Callable[..., FederatedData]:
    """``make_data("image", shape, n)``: n public examples of 10 classes, of a fixed seed."""

    def make(kind: str, shape: tuple[int, ...] | None = None, n: int = 40) -> FederatedData:
        shape = shape or SHAPES[kind]
        generator = torch.Generator().manual_seed(5)
        y = torch.arange(max(n, 10)) % 10
        if kind == "text":
            ids = torch.randint(5, 30, (len(y), shape[1]), generator=generator)
            mask = torch.ones_like(ids)
            ids[::2, -2:], mask[::2, -2:] = 0, 0  # every second text is shorter, hence padded
            x = torch.stack([ids, mask], dim=1)
        else:
            # A class has a centre, so that there is something to learn.
            centres = torch.randn(10, *shape, generator=generator)
            x = centres[y] + 0.3 * torch.randn(len(y), *shape, generator=generator)
        return FederatedData(Table(kind, Examples(x, y)), np.arange(n), {}, Config())

    return make


@pytest.fixture
def shake() -> Callable[[PersonalModel], PersonalModel]:
    """Give every slot's tensors values other than those they start with."""

    def shaken(model: PersonalModel) -> PersonalModel:
        generator = torch.Generator().manual_seed(9)
        for slot in model.slots:
            part = model.read(slot)
            noise = torch.randn(part.layout.size, generator=generator)
            model.write(slot, part.like(part.vector + 0.3 * noise))
        return model

    return shaken


@pytest.fixture
def tiny_hf_vit(tmp_path: Path) -> str:
    """The name of a random ViT classifier of 3x12x12 images and 4 classes, in a folder."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path / "hf_vit"
    torch.manual_seed(1)
    config = ViTConfig(
        image_size=12,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
        num_labels=4,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"
