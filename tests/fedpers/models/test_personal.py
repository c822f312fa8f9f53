"""Slots: what they hold, reading, writing, and training mode."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fedpers.models import build_model
from fedpers.models.personal import PersonalModel, Scaler
from fedpers.parts import Part


@pytest.fixture
def model(make_config, make_data):
    return build_model(make_config("mlp"), make_data("image"))


def names(model, slot):
    return list(model.slots[slot])


HEAD = ["head.weight", "head.bias"]
Q, V = "trunk.blocks.2.q", "trunk.blocks.2.v"


@pytest.mark.parametrize(
    ("share", "slots"),
    [
        ("ffa", {"body": [f"{Q}.lora_B", f"{V}.lora_B"], "head": HEAD}),
        (
            "both",
            {"body": [f"{n}.{ab}" for n in (Q, V) for ab in ("lora_A", "lora_B")], "head": HEAD},
        ),
        (
            "a-only",
            {
                "body": [f"{Q}.lora_A", f"{V}.lora_A"],
                "head": HEAD,
                "private": [f"{Q}.lora_B", f"{V}.lora_B"],
            },
        ),
    ],
)
def test_slots_under_lora(make_config, make_data, share, slots):
    model = build_model(make_config("vit-tiny", f"model.lora.share={share}"), make_data("image"))
    assert {slot: names(model, slot) for slot in model.slots} == slots
    trainable = {p for p in model.parameters() if p.requires_grad}
    assert trainable == set(model.trainable(list(slots)))


def test_slots_without_lora_hold_everything(make_config, make_data):
    model = build_model(make_config("mlp", "model.lora=null"), make_data("image"))
    layers = [f"trunk.hidden{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    assert {slot: names(model, slot) for slot in model.slots} == {"body": layers, "head": HEAD}


def test_demo_model_sends_1802_numbers(model):
    # FFA: B [128, 4], and a head of 10 x 128 + 10.
    assert model.read("body").layout.size == 512
    assert model.read("body").layout.size + model.read("head").layout.size == 1802


@settings(
    max_examples=settings().max_examples * 2 // 5,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**31), slot=st.sampled_from(["body", "head"]))
def test_write_then_read_gives_the_same_bits(model, seed, slot):
    before = model.slots[slot]
    generator = torch.Generator().manual_seed(seed)
    part = model.read(slot)
    part = part.like(torch.randn(part.layout.size, generator=generator))
    model.write(slot, part)
    assert torch.equal(model.read(slot).vector, part.vector)
    # In place: the tensors are the ones that an optimizer holds.
    assert all(model.slots[slot][name] is tensor for name, tensor in before.items())


def test_read_is_a_copy(model):
    part = model.read("head")
    part.vector.fill_(7)
    assert model.head.weight.abs().max() == 0


def test_write_takes_bfloat16(model):
    part = Part.of({n: t.bfloat16() + 0.1 for n, t in model.slots["head"].items()})
    model.write("head", part)
    assert torch.equal(model.head.bias, torch.full((10,), 0.1).bfloat16().float())


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"head.weight": torch.ones(10, 4), "head.bias": torch.ones(10)},
            r"slot head: got head\.weight \(10, 4\), takes head\.weight \(10, 128\)",
        ),
        (
            {"head.bias": torch.ones(10), "head.weight": torch.ones(10, 128)},
            r"slot head: got head\.bias \(10,\), takes head\.weight \(10, 128\)",
        ),
        ({"head.weight": torch.ones(10, 128)}, "slot head: got 1 tensors, takes 2"),
    ],
)
def test_write_refuses_another_layout_and_changes_nothing(model, tensors, says):
    with pytest.raises(ValueError, match=says):
        model.write("head", Part.of(tensors))
    assert model.read("head").vector.abs().max() == 0


def test_unknown_slot_is_an_error(model):
    with pytest.raises(ValueError, match="got 'gate', takes one of body, head"):
        model.read("gate")


def test_features_and_logits_by_hand():
    trunk, head = nn.Flatten(), nn.Linear(2, 2)
    scaler = Scaler(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    model = PersonalModel(trunk, head, scaler=scaler)
    model.write("head", Part.of({"head.weight": torch.eye(2), "head.bias": torch.tensor([5.0, 0])}))
    outputs = model(torch.tensor([[3.0, 10.0]]))
    features, logits = outputs.features, outputs.scores
    assert features.tolist() == [[1.0, 2.0]]
    assert logits.tolist() == [[6.0, 2.0]]


def test_added_slot_holds_parameters_and_float_buffers(model):
    gate = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    gate.register_buffer("temperature", torch.tensor([2.0]))
    gate.register_buffer("steps", torch.tensor(4))
    model.add_slot("gate", gate)
    assert model.gate is gate
    assert names(model, "gate") == [
        "gate.0.weight", "gate.0.bias", "gate.1.weight", "gate.1.bias", "gate.temperature",
    ]  # fmt: skip
    assert len(model.trainable(["gate"])) == 4
    part = model.read("gate")
    model.write("gate", part.like(part.vector + 1))
    assert gate.temperature.item() == 3
    assert gate.steps.item() == 4


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("head", nn.Linear(1, 1), "got 'head', takes a name"),
        ("trunk", nn.Linear(1, 1), "got 'trunk', takes a name"),
        ("gate", nn.Sequential(nn.BatchNorm1d(2)), "slot gate: got BatchNorm1d 0"),
        ("gate", nn.ReLU(), "without tensors"),
    ],
)
def test_slot_that_cannot_be_added(model, name, module, says):
    with pytest.raises(ValueError, match=says):
        model.add_slot(name, module)
    assert set(model.slots) == {"body", "head"}


def test_slots_stay_when_a_phase_freezes_them(model):
    model.head.requires_grad_(False)
    assert names(model, "head") == HEAD
    assert model.trainable(["head"]) == [model.head.weight, model.head.bias]


def test_copies_are_independent(model):
    twin = copy.deepcopy(model)
    twin.write("head", twin.read("head").like(torch.ones(1290)))
    assert model.read("head").vector.abs().max() == 0
    assert twin.head.weight.min() == 1


def test_training_mode_keeps_dropout_off_and_hooks_on():
    trunk = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))
    model = PersonalModel(trunk, nn.Linear(4, 2))
    x = torch.randn(6, 4)
    expected = model(x).logits
    model.train()
    assert torch.equal(model(x).logits, expected)
    assert model.training
    assert trunk[0].training
    assert model.head.training
    assert not trunk[1].training
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("name", ["mlp", "vit-tiny", "cnn"])
@pytest.mark.parametrize("lora", ["model.lora.share=both", "model.lora=null"])
def test_opacus_sees_each_examples_gradient(make_config, make_data, shake, name, lora):
    from opacus.grad_sample.utils import prepare_module

    data = make_data("image")
    model = shake(build_model(make_config(name, lora), data)).double().train()
    x, y = data.public.x[:3].double(), data.public.y[:3]
    parameters = model.trainable(["body", "head"])
    expected = []
    for i in range(3):
        loss = F.cross_entropy(model(x[i : i + 1]).logits, y[i : i + 1])
        expected.append(torch.autograd.grad(loss, parameters))

    hooks = prepare_module(model, "hooks", False, batch_first=True, loss_reduction="sum")
    F.cross_entropy(model(x).logits, y, reduction="sum").backward()
    for k, parameter in enumerate(parameters):
        by_hand = torch.stack([gradients[k] for gradients in expected])
        assert torch.allclose(parameter.grad_sample, by_hand, atol=1e-9)
    hooks.cleanup()
