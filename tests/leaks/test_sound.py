"""What is shipped passes the leak test: methods, models, ways to share adapters."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clients.base import algorithms
from fedpers.data import Signature
from fedpers.privacy.leaktest import Finding

Try = Callable[..., Finding | None]
METHODS = [name for name in algorithms.names() if name != "fedala"]  # which the plan refuses
IMAGE, SIGNAL = Signature("image", (1, 28, 28)), Signature("signal", (9, 64))
WHOLE = "model.lora=null"


def test_noised_counts_pass(tried: Try) -> None:
    assert tried("prior", "privacy.weights=counts", "privacy.delta=1e-5") is None


OWN = "own_numbers:Sound"


def test_numbers_sums_and_gradients_of_a_methods_own_pass(tried: Try) -> None:
    assert tried(OWN, "rounds=3") is None
    assert tried("own_numbers:AsItWasTold", "rounds=3") is None


@pytest.mark.slow
def test_they_pass_on_samples_and_where_the_number_of_examples_is_protected(tried: Try) -> None:
    assert tried(OWN, "privacy.sampling_rate=0.5") is None
    assert tried(OWN, "privacy.weights=counts", "privacy.delta=1e-5") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_passes(tried: Try, name: str) -> None:
    assert tried(name) is None
    assert tried(name, WHOLE, "training.fold=auto", "privacy.sampling_rate=0.3") is None


@pytest.mark.slow
@pytest.mark.parametrize("share", ["ffa", "both", "a-only"])
@pytest.mark.parametrize("name", ["fedavg", "fedper", "ditto", "fedcp"])
def test_every_way_to_share_adapters_passes(tried: Try, name: str, share: str) -> None:
    if name == "ditto" and share == "a-only":
        pytest.skip("the method refuses a-only")
    assert tried(name, f"model.lora.share={share}", "training.fold=2") is None


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], [WHOLE]], ids=["lora", "whole"])
@pytest.mark.parametrize("name", ["fedper", "perada"])
@pytest.mark.parametrize(
    ("model", "signature"), [("cnn", IMAGE), ("vit-tiny", IMAGE), ("conv1d", SIGNAL)]
)
def test_every_model_passes(
    tried: Try, model: str, signature: Signature, name: str, settings: list[str]
) -> None:
    assert tried(name, f"model.name={model}", *settings, signature=signature) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["training.optimizer=adam", "training.weight_decay=0.1"],
        ["training.momentum=0.9", "training.lr_decay=cosine"],
        ["strategy.max_update_norm=0.1", "privacy.max_grad_norm=50"],
        ["model.standardise=true", "model.cache=false", "rounds=1"],
        ["data.shift=both", "training.lr=3", "privacy.lr=10", "seed=7"],
    ],
    ids=["adam", "momentum", "clipped", "standardised", "shifted"],
)
def test_every_setting_passes(tried: Try, settings: list[str]) -> None:
    assert tried("ditto", *settings) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "sentence"])
def test_encoders_of_text_pass(tried: Try, tiny_bert: str, kind: str) -> None:
    name = f"{kind}:{tiny_bert.partition(':')[2]}"
    target = ["model.lora.target=[query,value]"] if kind == "sentence" else []
    text = Signature("text", (2, 12))
    assert tried("fedper", f"model.name={name}", *target, signature=text, classes=3) is None


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 100])
def test_few_and_many_classes_pass(tried: Try, classes: int) -> None:
    assert tried("prior", signature=Signature("tabular", (5,)), classes=classes) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedper", "perada", "fedcp"])
def test_numbers_pass(tried: Try, name: str) -> None:
    scale = ["task.name=regression", "task.params.mean=100", "task.params.sd=3"]
    assert tried(name, *scale, signature=Signature("tabular", (5,))) is None
