"""Language models: folded as one by one, private without hooks as with Opacus'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from languages import save_model, settings
from party import PRIVACY, Party, assert_same

from clients.base import find_algorithm
from clients.training.features import FeatureCache
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.models.causal import HERE, unpacked


def party(folder: Path, kind: str, *overrides: str) -> Party:
    """Clients of one node that have texts of their own, one of them none."""
    config = settings(folder, save_model(kind, folder / kind), overrides)
    data = load_data(config)
    model = build_model(config, data)
    model.after_stem = True
    examples = [data.client(client).train for client in data.clients]
    examples[1] = examples[1].take(examples[1].y[:0, 0])
    cut = [type(e)(model.stem(e.x), e.y) for e in examples]
    return Party("small", *PRIVACY, "privacy.lr=0.2", given=(model, cut))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "lora", ["{rank: 2, share: both, layers: 2}", "{rank: 2, share: ffa}"], ids=["cut", "whole"]
)
def test_at_once_as_one_by_one(kind: str, lora: str, tmp_path: Path) -> None:
    own = party(tmp_path, kind, f"model.lora={lora}")
    shared = own.algorithm.phases()[1]
    assert_same(own.alone(shared), own.together(shared))
    one = own.alone(shared, own.accounts(tmp_path))  # by Opacus' hooks
    assert_same(one, own.together(shared, own.accounts(tmp_path)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_lies_below_is_kept_in_memory_or_in_files(dtype: str, tmp_path: Path) -> None:
    overrides = [f"model.dtype={dtype}"]
    config = settings(tmp_path, save_model("llama", tmp_path / "llama"), overrides)
    data = load_data(config)
    kept = FeatureCache(data, build_model(config, data)).client("play/2")
    mapped = FeatureCache(data, build_model(config, data), limit=0).client("play/2")
    # Texts of one batch are other ones, so that last bits differ; those of the tokens must not.
    (hidden, *tokens), (other, *same) = (unpacked(own.train.x, 16) for own in (kept, mapped))
    close = 1e-4 if dtype == "float32" else 0.1
    there = (tokens[1] & HERE).bool()  # behind a text there may be anything, which nothing reads
    torch.testing.assert_close(hidden[there], other[there], atol=close, rtol=close)
    assert all(map(torch.equal, tokens, same)) and str(other.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("method", ["fedper", "fedrep", "fedbabu", "pfedsim", "fedala", "fedcp"])
def test_a_method_that_has_a_head_apart_is_refused_without_one(method: str, tmp_path: Path) -> None:
    overrides = ["model.head=none", f"strategy.name={method}"]
    config = settings(tmp_path, save_model("llama", tmp_path / "llama"), overrides)
    found, params = find_algorithm(method, config, ["rho", "signal", "gate_width"])
    with pytest.raises(ConfigError, match=method):
        found(config, build_model(config, load_data(config)), params)
