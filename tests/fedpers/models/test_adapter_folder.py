"""Saved adapters load with PEFT and predict the same."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedpers.errors import DataError
from fedpers.models import Backbone, base_model, build_model, save_adapter
from fedpers.models.adapter_folder import load_adapter
from fedpers.parts import Parts


class TwoHeads(Backbone):
    """A trunk with a module that is called like the classifier."""

    kinds = ("tabular",)
    feature_dim = 5
    lora_target = ("hidden",)

    def __init__(self, input_shape):
        super().__init__()
        self.hidden, self.head = nn.Linear(7, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.hidden(x).relu())


@pytest.mark.parametrize("share", ["ffa", "a-only"])
@pytest.mark.parametrize("case", ["mlp", "vit-tiny", "cnn", "conv1d", "bert", "hf_vit", "plugin"])
def test_peft_loads_what_was_saved(
    make_config, make_data, shake, request, monkeypatch, tmp_path, case, share
):
    from peft import PeftModel

    name, kind = {
        "bert": (None, "text"),
        "conv1d": ("conv1d", "signal"),
        "hf_vit": (None, "image"),
        "plugin": ("a_plugin:TwoHeads", "tabular"),
    }.get(case, (case, "image"))
    name = name or request.getfixturevalue(f"tiny_{case}")
    monkeypatch.setitem(sys.modules, "a_plugin", sys.modules[TwoHeads.__module__])
    overrides = ["model.standardise=true", f"model.lora.share={share}", "model.lora.alpha=3"]
    if case == "mlp":
        overrides += ["model.pretrain.task=labels", "model.pretrain.epochs=2"]
    config, data = make_config(name, *overrides), make_data(kind)
    model = shake(build_model(config, data))
    folder = tmp_path / "adapters" / "7"
    save_adapter(model, folder, config, {"round": 3})

    loaded = PeftModel.from_pretrained(base_model(config, data), folder)
    x = data.public.x
    with torch.no_grad():
        ours, theirs = model(x), loaded(x)
    assert ours.logits.std() > 0.1
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    assert torch.allclose(ours.features, theirs.features, atol=1e-5)
    assert not torch.allclose(ours.features, base_model(config, data)(x).features, atol=1e-2)
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["peft_type"]) == (4, 3.0, "LORA")


def test_folder_holds_factors_head_and_manifest(make_config, make_data, tmp_path):
    config, data = make_config("mlp"), make_data("image")
    save_adapter(build_model(config, data), tmp_path / "a", config, {"epsilon": 2.5})
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "base_model.model.trunk.hidden2.lora_A.weight": (4, 128),
        "base_model.model.trunk.hidden2.lora_B.weight": (128, 4),
        "base_model.model.head.weight": (10, 128),
        "base_model.model.head.bias": (10,),
    }
    saved = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert saved["modules_to_save"] == ["head"]
    assert saved["target_modules"] == ["trunk.hidden2"]
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == {"epsilon": 2.5}


def test_without_lora_the_whole_model_is_saved(make_config, make_data, shake, tmp_path):
    config, data = make_config("cnn", "model.lora=null"), make_data("image")
    model = shake(build_model(config, data))
    save_adapter(model, tmp_path / "a", config, {})
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"model.safetensors", "manifest.json"}
    fresh = build_model(config, data)
    fresh.load_state_dict(load_file(tmp_path / "a" / "model.safetensors"))
    assert torch.equal(fresh(data.public.x).logits, model(data.public.x).logits)


def test_added_slots_are_saved(make_config, make_data, tmp_path):
    config = make_config("mlp")
    model = build_model(config, make_data("image"))
    model.add_slot("gate", nn.Linear(3, 2))
    save_adapter(model, tmp_path / "a", config, {})
    parts = Parts.load(tmp_path / "a" / "slots.safetensors")
    assert list(parts) == ["gate"]
    assert torch.equal(parts["gate"].vector, model.read("gate").vector)


def test_folder_is_replaced_whole(make_config, make_data, tmp_path):
    config = make_config("mlp")
    model = build_model(config, make_data("image"))
    for round_number in (1, 2):
        save_adapter(model, tmp_path / "a", config, {"round": round_number})
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == {"round": 2}
    with pytest.raises(TypeError):
        save_adapter(model, tmp_path / "a", config, {"round": object()})
    assert json.loads((tmp_path / "a" / "manifest.json").read_text()) == {"round": 2}
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["a"]


@pytest.mark.parametrize("settings", [[], ["model.lora.share=a-only"], ["model.lora=null"]])
def test_what_was_saved_is_read_back(make_config, make_data, shake, tmp_path, settings):
    config, data = make_config("vit-tiny", *settings), make_data("image")
    model = build_model(config, data)
    model.add_slot("gate", nn.Linear(3, 2))
    save_adapter(shake(model), tmp_path / "a", config, {"gate": "global"})
    fresh = build_model(config, data)
    fresh.add_slot("gate", nn.Linear(3, 2))
    assert load_adapter(fresh, tmp_path / "a") == {"gate": "global"}
    assert list(fresh.slots) == list(model.slots)
    for slot in model.slots:
        assert torch.equal(fresh.read(slot).vector, model.read(slot).vector), slot
    x = data.public.x
    assert torch.equal(fresh(x).logits, model(x).logits)


def test_a_folder_that_cannot_be_read_is_one_line(make_config, make_data, tmp_path):
    config, data = make_config("mlp"), make_data("image")
    model = build_model(config, data)
    folder = tmp_path / "a"
    for damaged in ("manifest.json", "adapter_model.safetensors"):
        for contents in (b"nothing", None):
            save_adapter(model, folder, config, {})
            (folder / damaged).unlink()
            if contents is not None:
                (folder / damaged).write_bytes(contents)
            with pytest.raises(DataError, match="cannot be read as a client's model") as error:
                load_adapter(model, folder)
            assert "\n" not in str(error.value)
    other = build_model(make_config("mlp", "model.lora.rank=2"), data)
    save_adapter(model, folder, config, {})
    with pytest.raises(DataError, match="cannot be read as a client's model"):
        load_adapter(other, folder)
