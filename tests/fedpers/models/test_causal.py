from pathlib import Path
from typing import Any

import pytest
import torch
from languages import KINDS, save_model, settings

from fedpers.config import Config
from fedpers.data import FederatedData, load_data
from fedpers.errors import ConfigError
from fedpers.models import PersonalModel, build_model, save_adapter
from fedpers.models.adapter_folder import load_adapter
from fedpers.models.causal import packed, unpacked
from fedpers.models.token_scores import TokenScores


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The name of a tiny model of each kind."""
    return {kind: save_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def built(folder: Path, name: str, *overrides: str) -> tuple[PersonalModel, FederatedData, Config]:
    config = settings(folder, name, overrides)
    data = load_data(config)
    return build_model(config, data), data, config


def shaken(model: PersonalModel) -> PersonalModel:
    """With adapters that do something."""
    torch.manual_seed(3)
    for slot in model.slots:
        part = model.read(slot)
        model.write(slot, part.like(part.vector + 0.3 * torch.randn(len(part.vector))))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_transformers(
    kind: str, saved: dict[str, str], tmp_path: Path
) -> None:
    model, data, _ = built(tmp_path, saved[kind])
    shaken(model)
    x = data.inputs[:7]
    ids, scored = x[:, 0], x[:, 2, 1:].bool()
    whole: Any = model.trunk.get_submodule("model")
    with torch.no_grad():
        found = model(x).scores
        expected = whole(input_ids=ids).logits.log_softmax(2)[:, :-1]
    known = expected.gather(2, ids[:, 1:, None])[..., 0] * scored
    torch.testing.assert_close(found, torch.cat([known, expected.amax(2) * scored], 1))
    # From below the adapters on it is the same, each text alone, and in any order.
    model.after_stem = True
    states = model.stem(x)
    assert model.has_stem and states.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(model(states).scores, found)
        torch.testing.assert_close(model(states[3:4]).scores, found[3:4])


def test_slots_are_the_last_blocks_and_those_below(saved: dict[str, str], tmp_path: Path) -> None:
    model, _, _ = built(tmp_path, saved["llama"])
    blocks = {slot: {name.split(".")[4] for name in model.slots[slot]} for slot in model.slots}
    assert blocks == {"body": {"1"}, "head": {"2"}}
    model, _, _ = built(tmp_path, saved["llama"], "model.head=none")
    assert list(model.slots) == ["body"]
    model, _, _ = built(tmp_path, saved["llama"], "model.head=none", "model.lora.layers=null")
    assert {name.split(".")[4] for name in model.slots["body"]} == {"0", "1", "2"}
    assert not model.has_stem
    model, _, _ = built(tmp_path, saved["llama"], "model.lora.share=a-only")
    assert list(model.slots) == ["body", "head", "private"]


def test_adapters_are_float32_on_a_frozen_bfloat16(saved: dict[str, str], tmp_path: Path) -> None:
    model, data, _ = built(tmp_path, saved["qwen"], "model.dtype=bfloat16")
    assert {t.dtype for tensors in model.slots.values() for t in tensors.values()} == {
        torch.float32
    }
    frozen = {p.dtype for n, p in model.named_parameters() if ".lora_" not in n}
    assert frozen == {torch.bfloat16}
    exact, _, _ = built(tmp_path, saved["qwen"])
    x = data.inputs[:5]
    with torch.no_grad():
        torch.testing.assert_close(model(x).scores, exact(x).scores, atol=0.3, rtol=0.1)


def test_gradients_without_all_words_are_those_with_them() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(50, 8), torch.randn(50)
    hidden, targets = torch.randn(600, 8, requires_grad=True), torch.randint(50, (600,))
    weights = torch.rand(600)
    known, top = TokenScores.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    (known * weights).sum().backward()
    found, hidden.grad = hidden.grad, None
    plain = (hidden @ weight.T + bias).log_softmax(1)
    torch.testing.assert_close(top, plain.amax(1).detach())
    (plain.gather(1, targets[:, None])[:, 0] * weights).sum().backward()
    torch.testing.assert_close(found, hidden.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_behind_states_keep_every_bit(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 1, 32640, 49151, 2**28]])  # some of them are NaN as numbers
    marks, hidden = torch.tensor([[0, 1, 2, 3, 1]]), torch.randn(1, 5, 4).to(dtype)
    states = torch.stack([packed(hidden, ids, marks)[0]])[torch.tensor([0, 0])]
    found = unpacked(states, 4)
    assert torch.equal(found[0][1], hidden[0])
    assert found[1][1].tolist() == ids[0].tolist() and found[2][1].tolist() == marks[0].tolist()


def test_an_adapter_loads_in_peft_and_back(saved: dict[str, str], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for kind in KINDS:
        model, data, config = built(tmp_path, saved[kind])
        shaken(model)
        ids = data.inputs[:3, 0]
        whole: Any = model.trunk.get_submodule("model")
        expected = whole(input_ids=ids).logits.detach()
        save_adapter(model, tmp_path / kind, config, {})
        base = AutoModelForCausalLM.from_pretrained(saved[kind].removeprefix("hf:"))
        with torch.no_grad():
            found = PeftModel.from_pretrained(base, str(tmp_path / kind))(input_ids=ids).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        again = build_model(config, data)
        load_adapter(again, tmp_path / kind)
        assert all(torch.equal(again.read(s).vector, model.read(s).vector) for s in model.slots)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.lora=null", r"model\.lora: got None, takes settings"),
        (
            "model.standardise=true data.public_fraction=0.3",
            r"model\.standardise: got True, takes false",
        ),
        (
            "model.pretrain.task=labels data.public_fraction=0.3",
            r"model\.pretrain\.task: got 'labels', takes none",
        ),
        ("model.head=last", r"model\.head: got 'last', takes last-K"),
        ("model.head=last-9", r"model\.head: got 9, takes 1 to 3"),
        ("model.head=last-2", r"model\.head: got 'last-2', takes adapters of fewer blocks"),
        ("model.lora.layers=7", r"model\.lora\.layers: got 7, takes 1 to 3"),
        ("model.lora.target=[lm_head]", r"model\.lora\.target"),
        ("data.max_tokens=65", r"data\.max_tokens: got 65, takes at most 64"),
    ],
)
def test_wrong_settings_are_one_line(
    saved: dict[str, str], tmp_path: Path, override: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        built(tmp_path, saved["llama"], *override.split())
    assert "\n" not in str(found.value)


def test_a_model_that_is_no_language_model_is_one_line(tmp_path: Path, tiny_bert: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.name: got 'hf:.*, takes a causal language"):
        (tmp_path / "bert" / "model.safetensors").unlink()
        built(tmp_path, tiny_bert)
    with pytest.raises(ConfigError, match=r"^model\.head: got 'last-1', takes null where the task"):
        from fedpers.config import load_config

        config = load_config(None, ["model.head=last-1"])
        build_model(config, load_data(config))
