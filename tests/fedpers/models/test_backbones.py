"""Shapes, sizes and fits of the small backbones."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fedpers.errors import ConfigError
from fedpers.models import BACKBONES, Backbone, build_model
from fedpers.models.backbones import patch_size


class WithBatchNorm(Backbone):
    kinds = ("tabular",)
    feature_dim = 7

    def __init__(self, input_shape):
        super().__init__()
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        return self.norm(x)


def test_cnn_has_the_parameters_of_fedavgs_cnn(make_config, make_data):
    data = make_data("image", (1, 28, 28))
    model = build_model(make_config("cnn", "model.lora=null"), data)
    assert sum(p.numel() for p in model.parameters()) == 582_026
    assert model.read("body").layout.size + model.read("head").layout.size == 582_026


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("mlp", (7,)),
        ("table", (7,)),
        ("linear", (7,)),
        ("cnn", (1, 4, 4)),
        ("cnn", (1, 8, 8)),
        ("cnn", (3, 16, 21)),
        ("cnn", (3, 32, 32)),
        ("vit-tiny", (1, 28, 28)),
        ("vit-tiny", (3, 32, 32)),
        ("vit-tiny", (1, 8, 8)),
        ("vit-tiny", (1, 5, 3)),
        ("conv1d", (9, 128)),
        ("conv1d", (1, 1)),
    ],
)
def test_features_have_the_declared_size(name, shape):
    trunk = BACKBONES.get(name)(shape)
    features = trunk(torch.randn(3, *shape))
    assert features.shape == (3, trunk.feature_dim)


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit-tiny", "conv1d"])
def test_one_examples_features_do_not_depend_on_the_batch(name):
    shape = (3, 40) if name == "conv1d" else (1, 8, 8)
    trunk = BACKBONES.get(name)(shape).train()
    x = torch.randn(5, *shape)
    assert torch.allclose(trunk(x)[2], trunk(x[2:3])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("sides", "patch"),
    [((28, 28), 7), ((32, 32), 4), ((8, 8), 2), ((64, 64), 8), ((224, 224), 28), ((28, 14), 2)],
)
def test_patch_divides_the_image(sides, patch):
    assert patch_size(*sides) == patch


def test_vit_tells_patches_apart_by_place():
    trunk = BACKBONES.get("vit-tiny")((1, 8, 8))
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(trunk(x), trunk(x.flip(3)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "takes"),
    [
        ("mlp", "text", "hf:<name or folder> or sentence:<name or folder> for text data"),
        ("cnn", "tabular", "linear or mlp or table for tabular data"),
        ("vit-tiny", "signal", "conv1d or mlp for signal data"),
        ("conv1d", "image", "cnn or mlp or vit-tiny or hf:<name or folder> for image data"),
        ("hf:whatever", "signal", "conv1d or mlp for signal data"),
    ],
)
def test_backbone_of_another_kind_is_an_error_that_names_those_that_fit(
    make_config, make_data, name, kind, takes
):
    with pytest.raises(ConfigError) as error:
        build_model(make_config(name), make_data(kind))
    assert str(error.value) == f"model.name: got {name!r}, takes {takes}"


def test_unknown_backbone_is_an_error_that_lists_them(make_config, make_data):
    with pytest.raises(ConfigError, match="one of cnn, conv1d, linear, mlp, table, vit-tiny, hf:"):
        build_model(make_config("resnet"), make_data("image"))


def test_image_too_small_for_the_cnn_is_an_error(make_config, make_data):
    with pytest.raises(ConfigError, match="smaller than 4x4"):
        build_model(make_config("cnn"), make_data("image", (1, 3, 9)))


def test_dotted_path_names_a_backbone_and_batch_norm_is_refused(
    make_config, make_data, monkeypatch
):
    monkeypatch.setitem(sys.modules, "a_plugin", sys.modules[WithBatchNorm.__module__])
    with pytest.raises(ConfigError, match=r"found BatchNorm1d norm\); use GroupNorm or LayerNorm"):
        build_model(make_config("a_plugin:WithBatchNorm"), make_data("tabular"))
    with pytest.raises(ConfigError, match=r"a subclass of fedpers\.models\.Backbone"):
        build_model(make_config("torch.nn:ReLU"), make_data("tabular"))


def test_import_is_light():
    code = "import sys, fedpers.models; print([m for m in %r if m in sys.modules])"
    heavy = ("transformers", "peft", "sklearn", "pandas", "datasets")
    answer = subprocess.run(
        [sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
