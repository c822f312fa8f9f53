"""What frozen layers make of the examples is computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.features import FeatureCache
from fedpers.config import Config
from fedpers.data import Examples, FederatedData, Split, Table
from fedpers.models import PersonalModel, build_model
from fedpers.models.sentence import SentenceEncoder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts went through the encoder, call by call."""
    counts: list[int] = []
    pool = SentenceEncoder._pool

    def counting(self: SentenceEncoder, x: Tensor) -> Tensor:
        counts.append(len(x))
        return pool(self, x)

    monkeypatch.setattr(SentenceEncoder, "_pool", counting)
    return counts


def texts(config: Config) -> FederatedData:
    """Two clients who judge the same ten texts; client "b" has no validation split."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 30, (10, 6), generator=generator)
    x = torch.stack([ids, torch.ones_like(ids)], dim=1)
    table = Table("text", Examples(torch.cat([x, x]), torch.arange(20) % 3))
    rows = np.arange(20)
    splits = {
        "a": Split(rows[:6], rows[6:8], rows[8:10]),
        "b": Split(rows[10:18], rows[:0], rows[18:]),
    }
    return FederatedData(table, rows[:0], splits, config)


def model_of(name: str, data: FederatedData, *targets: str) -> PersonalModel:
    config = Config()
    config.model.name = name.replace("hf:", "sentence:")
    assert config.model.lora is not None
    config.model.lora.target = list(targets)
    return build_model(config, data)


def test_each_text_is_encoded_once_a_machine(tiny_bert: str, encoded: list[int]) -> None:
    data = texts(Config())
    model = model_of(tiny_bert, data)
    cache = FeatureCache(data, model)
    assert sum(encoded) == 1 + 10  # one to see what comes out, then each of the ten
    for client in "ab":
        own, made = data.client(client), cache.client(client)
        for part in ("train", "val", "test"):
            x, features = getattr(own, part).x, getattr(made, part).x
            torch.testing.assert_close(features, model.stem(x), atol=1e-6, rtol=1e-5)
            assert torch.equal(getattr(made, part).y, getattr(own, part).y)
    # Another run, another seed: it is found.
    encoded.clear()
    other = Config(seed=7)
    again = FeatureCache(texts(other), model_of(tiny_bert, texts(other)))
    assert torch.equal(again.client("a").test.x, cache.client("a").test.x)
    assert sum(encoded) == 1


def test_what_is_trained_is_never_kept(tiny_bert: str, encoded: list[int]) -> None:
    data = texts(Config())
    cache = FeatureCache(data, model_of(tiny_bert, data, "query", "value"))
    assert torch.equal(cache.client("a").train.x, data.client("a").train.x)
    assert encoded == []


def test_too_much_to_keep_is_computed_by_client(tiny_bert: str, encoded: list[int]) -> None:
    data = texts(Config())
    model = model_of(tiny_bert, data)
    cache = FeatureCache(data, model, limit=9 * 16 * 4)
    features = cache.client("b").train.x
    assert sum(encoded) == 1 + 10  # those of "b" alone
    torch.testing.assert_close(features, model.stem(data.client("b").train.x))
