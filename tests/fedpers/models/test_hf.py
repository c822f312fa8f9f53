"""Backbones of transformers, from folders."""

import pytest
import torch
import torch.nn.functional as F

from fedpers.data.tokens import tokenize
from fedpers.errors import ConfigError
from fedpers.models import build_model


def test_bert_builds_from_a_plain_encoder(make_config, make_data, tiny_bert, shake):
    data = make_data("text")
    model = build_model(make_config(tiny_bert), data)
    assert model.feature_dim == 16
    layer = "trunk.model.bert.encoder.layer.{}.attention.self.{}.lora_B"
    expected = [layer.format(i, n) for i in (0, 1) for n in ("query", "value")]
    assert list(model.slots["body"]) == expected
    shake(model)
    outputs = model(data.public.x)
    features, logits = outputs.features, outputs.scores
    assert features.shape == (40, 16)
    assert logits.shape == (40, 10)
    assert torch.equal(model.train()(data.public.x).logits, logits), "dropout is on"


def test_bert_features_are_the_inputs_of_its_classifier(make_config, make_data, tiny_bert):
    from transformers import BertModel

    data = make_data("text")
    encoder = BertModel.from_pretrained(tiny_bert.removeprefix("hf:")).eval()
    x = data.public.x
    with torch.no_grad():
        expected = encoder(input_ids=x[:, 0], attention_mask=x[:, 1]).pooler_output
        features = build_model(make_config(tiny_bert), data)(x).features
    assert torch.allclose(features, expected, atol=1e-6)


def test_two_builds_of_bert_give_the_same_bits(make_config, make_data, tiny_bert):
    data = make_data("text")
    overrides = ("model.pretrain.task=labels", "model.pretrain.epochs=1", "model.standardise=true")
    first, second = (build_model(make_config(tiny_bert, *overrides), data) for _ in range(2))
    other = build_model(make_config(tiny_bert), data)
    weights = first.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.state_dict().items())
    name = "trunk.model.bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(weights[name], other.state_dict()[name]), "not pre-trained"


def test_vit_resizes_repeats_and_normalises(make_config, make_data, tiny_hf_vit):
    from transformers import ViTForImageClassification

    reference = ViTForImageClassification.from_pretrained(tiny_hf_vit.removeprefix("hf:")).eval()
    data = make_data("image")  # 1x8x8, where the model takes 3x12x12
    x = data.public.x.clamp(-1, 1)
    pixels = F.interpolate(x, (12, 12), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    means, stds = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0])
    pixels = ((pixels + 1) / 2 - means.view(3, 1, 1)) / stds.view(3, 1, 1)
    model = build_model(make_config(tiny_hf_vit), data)
    with torch.no_grad():
        expected = reference.vit(pixels).last_hidden_state[:, 0]
        assert torch.allclose(model(x).features, expected, atol=1e-5)
    assert len(model.slots["body"]) == 4  # query and value of both blocks


def test_missing_folder_is_one_line(make_config, make_data, tmp_path):
    name = f"hf:{tmp_path / 'nowhere'}"
    for build in (
        lambda: build_model(make_config(name), make_data("text")),
        lambda: tokenize(name, ["a"], 128),
    ):
        with pytest.raises(ConfigError, match=r"model\.name: .* a folder that exists") as error:
            build()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("fixture", "kind"), [("tiny_bert", "image"), ("tiny_hf_vit", "text")])
def test_model_of_another_kind_is_one_line(make_config, make_data, request, fixture, kind):
    name = request.getfixturevalue(fixture)
    with pytest.raises(ConfigError, match=f"a model for {kind} classification") as error:
        build_model(make_config(name), make_data(kind))
    assert "\n" not in str(error.value)


def test_weights_as_pickle_are_refused(make_config, make_data, tiny_bert, tmp_path):
    from safetensors.torch import load_file

    file = tmp_path / "bert" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "bert" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(ConfigError, match="stored as safetensors"):
        build_model(make_config(tiny_bert), make_data("text"))


def test_batch_norm_in_a_model_of_transformers_is_refused(make_config, make_data, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ConfigError, match="use GroupNorm"):
        build_model(make_config(f"hf:{tmp_path / 'resnet'}"), make_data("image"))
