"""Exported models are loaded without this package and predict the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedpers.data.tokens import tokenize
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.models.export import export_model, folded_head
from fedpers.tasks import Classification, Regression
from fedpers.tasks.regression import RegressionParams

TEXTS = ["the cat sat on a mat", "a dog", "the old red hat ran away from home", "sea"]

LOAD = """
import json, sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel

folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
needs = json.loads((folder / "manifest.json").read_text())["needs"]
base = needs["base"]
base = folder / base if base in ("base", ".") else base
model = getattr(transformers, needs["class"]).from_pretrained(base, num_labels=needs["num_labels"])
if (folder / "adapter_config.json").exists():
    model = PeftModel.from_pretrained(model, folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(needs["preprocessing"])
most = needs["max_tokens"]
tokens = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**tokens).logits
assert not any(name.split(".")[0] in ("fedpers", "clients") for name in sys.modules)
print(json.dumps(logits.tolist()))
"""
NAMES = [f"kind {k}" for k in range(10)]


def load_elsewhere(folder, tmp_path):
    """The logits of ``TEXTS`` in a process that cannot import this package."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "files", "base"),
    [
        ([], ["adapter_config.json", "adapter_model.safetensors"], None),
        (["model.standardise=true", "model.lora.share=a-only"], None, None),
        (["model.pretrain.task=labels", "model.pretrain.epochs=1"], None, "base"),
        (["model.lora=null"], ["config.json", "model.safetensors"], "."),
    ],
    ids=["plain", "standardised", "pre-trained", "whole"],
)
def test_transformers_and_peft_are_enough(
    make_config, make_data, tiny_bert, shake, tmp_path, settings, files, base
):
    config, data = make_config(tiny_bert, *settings), make_data("text")
    model = shake(build_model(config, data))
    folder = tmp_path / "out"
    export_model(model, folder, config, data, {"client": "3", "gate": "personal"})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["client"] == "3" and manifest["gate"] == "personal"
    assert manifest["needs"]["base"] == (base or tiny_bert.removeprefix("hf:"))
    if files is not None:
        assert sorted(p.name for p in folder.iterdir()) == sorted([*files, "manifest.json"])
    with torch.no_grad():
        expected = model(tokenize(tiny_bert, TEXTS, 128)).logits
    assert expected.std() > 0.1
    assert torch.allclose(load_elsewhere(folder, tmp_path), expected, atol=1e-5)


@pytest.mark.slow
def test_layers_that_the_base_does_not_have_are_exported(
    make_config, make_data, tiny_bert, shake, tmp_path
):
    """DistilBERT's encoder comes without its pre_classifier: it is drawn when it is loaded."""
    from transformers import DistilBertConfig, DistilBertModel

    name = tmp_path / "distilbert"
    torch.manual_seed(1)
    settings = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    DistilBertModel(DistilBertConfig(**settings, initializer_range=0.3)).save_pretrained(name)
    for file in Path(tiny_bert.removeprefix("hf:")).glob("tokenizer*.json"):
        shutil.copy(file, name)
    config, data = make_config(f"hf:{name}"), make_data("text")
    data.task = Classification(NAMES)
    model = shake(build_model(config, data))
    export_model(model, tmp_path / "out", config, data, {})
    needs = json.loads((tmp_path / "out" / "manifest.json").read_text())["needs"]
    assert needs["base"] == "base"
    called = json.loads((tmp_path / "out" / "base" / "config.json").read_text())["id2label"]
    assert called == needs["id2label"] == {str(k): name for k, name in enumerate(NAMES)}
    with torch.no_grad():
        expected = model(tokenize(f"hf:{name}", TEXTS, 128)).logits
    assert torch.allclose(load_elsewhere(tmp_path / "out", tmp_path), expected, atol=1e-5)


def test_standardisation_is_folded_by_hand(make_config, make_data, tiny_bert):
    model = build_model(make_config("mlp", "model.standardise=true"), make_data("image"))
    with torch.no_grad():
        model.mean.copy_(torch.arange(128) / 10)
        model.scale.fill_(2)
        model.head.weight.fill_(3)
        model.head.bias.fill_(1)
    head = folded_head(model)
    # W / s = 1.5; b - 1.5 * (0 + 0.1 + ... + 12.7) = 1 - 1.5 * 812.8.
    assert bool((head.weight == 1.5).all())
    torch.testing.assert_close(head.bias, torch.full((10,), 1 - 1.5 * 812.8))
    features = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.head((features - model.mean) / model.scale)
        torch.testing.assert_close(head(features), expected)
    assert bool((model.head.weight == 3).all()), "the model itself has changed"


@pytest.mark.parametrize(("name", "kind"), [("mlp", "image"), ("sentence", "text")])
def test_other_backbones_say_what_they_need(
    make_config, make_data, tiny_bert, shake, tmp_path, name, kind
):
    from peft import PeftModel

    from fedpers.models import base_model

    name = tiny_bert.replace("hf:", "sentence:") if name == "sentence" else name
    config, data = make_config(name, "model.standardise=true"), make_data(kind)
    model = shake(build_model(config, data))
    export_model(model, tmp_path / "out", config, data, {"client": "x"})
    needs = json.loads((tmp_path / "out" / "manifest.json").read_text())["needs"]
    assert needs["package"].startswith("fedpers==") and needs["base"] == "base.safetensors"
    assert needs["model"]["name"] == name and needs["task"]["params"]["names"] == list("0123456789")
    # The frozen model is all in the file: other public data, another frozen model.
    other = make_config(name, "model.standardise=true", "seed=3")
    base = base_model(other, make_data(kind, n=20))
    base.load_state_dict(load_file(tmp_path / "out" / "base.safetensors"))
    loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    with torch.no_grad():
        x = data.public.x
        assert torch.allclose(loaded(x).logits, model(x).logits, atol=1e-5)


def test_slots_of_a_method_need_this_package(make_config, make_data, tiny_bert, tmp_path):
    config, data = make_config(tiny_bert, "strategy.name=intercept"), make_data("text")
    model = build_model(config, data)
    model.add_slot("intercept", torch.nn.Linear(2, 1))
    export_model(model, tmp_path / "out", config, data, {})
    needs = json.loads((tmp_path / "out" / "manifest.json").read_text())["needs"]
    assert needs["strategy"] == "intercept" and (tmp_path / "out" / "slots.safetensors").exists()


def test_a_classifier_without_a_bias_cannot_take_one(
    make_config, make_data, tiny_bert, shake, tmp_path, monkeypatch
):
    from fedpers.models import export

    config, data = make_config(tiny_bert), make_data("text")
    model = shake(build_model(config, data))
    published = export._published(config, data)
    published.classifier = torch.nn.Linear(16, 10, bias=False)  # as decoders' are
    monkeypatch.setattr(export, "_published", lambda *_: published)
    with pytest.raises(ConfigError, match="a classifier with a bias") as error:
        export_model(model, tmp_path / "out", config, data, {})
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_regressions_head_is_exported_in_the_targets_unit(make_config, make_data):
    data = make_data("image")
    data.task = Regression(RegressionParams(mean=10.0, sd=2.0))
    model = build_model(make_config("mlp", "task.name=regression"), data)
    assert model.head.out_features == 1
    with torch.no_grad():
        model.head.weight.fill_(3)
        model.head.bias.fill_(1)
    head = folded_head(model)
    assert bool((head.weight == 6).all()) and head.bias.tolist() == [12.0]
    assert bool((model.head.weight == 3).all()), "the model itself has changed"
