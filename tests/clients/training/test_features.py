"""What frozen layers make of the examples is computed once."""

from __future__ import annotations

import os
import resource
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.training.features import FeatureCache, mapped
from fedpers.config import Config
from fedpers.data import Examples, FederatedData, Split, Table
from fedpers.errors import ConfigError
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


IMAGES = Table("image", Examples(torch.arange(2560).view(40, 1, 8, 8) / 2560, torch.arange(40) % 3))


def images(config: Config) -> FederatedData:
    """Two clients with images; client "b" has no validation split."""
    rows = np.arange(40)
    splits = {
        "a": Split(rows[:10], rows[10:14], rows[14:20]),
        "b": Split(rows[20:32], rows[:0], rows[32:]),
    }
    return FederatedData(IMAGES, rows[:0], splits, config)


@pytest.mark.parametrize("name", ["vit-tiny", "cnn"])
def test_what_memory_does_not_take_is_on_disk_and_computed_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "files"))
    calls: list[int] = []
    stem, mkdtemp, modes = PersonalModel.stem, tempfile.mkdtemp, list[int]()

    def counting(self: PersonalModel, x: Tensor) -> Tensor:
        calls.append(len(x))
        return stem(self, x)

    def watched(*args: Any, **options: Any) -> Any:
        folder = mkdtemp(*args, **options)
        modes.append(stat.S_IMODE(os.stat(folder).st_mode))
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", watched)
    data = images(Config())
    model = build_model(config_of(name), data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected = FeatureCache(data, model)
    wanted = {client: expected.client(client) for client in "ab"}
    monkeypatch.setattr(PersonalModel, "stem", counting)
    cache = FeatureCache(data, model, limit=0)
    for _ in range(3):
        for client in "ab":
            for part in ("train", "val", "test"):
                made, own = getattr(cache.client(client), part), getattr(wanted[client], part)
                assert torch.equal(made.x, own.x) and torch.equal(made.y, own.y)
                assert made.x.stride() == own.x.stride() or not len(own)
    assert calls == [10, 4, 6, 12, 0, 8]
    assert set(modes) == {0o700}
    assert list((tmp_path / "files").iterdir()) == []  # the names are gone, the values are not


def test_what_fits_is_kept_and_the_rest_mapped() -> None:
    data = images(Config())
    model = build_model(config_of("vit-tiny"), data)
    size = sum(
        e.x.nbytes + e.y.nbytes for e in vars(FeatureCache(data, model).client("a")).values()
    )
    cache = FeatureCache(data, model, limit=size)
    kept, other = cache.client("a"), cache.client("b")
    assert cache.client("a") is kept
    assert cache.client("b") is not other
    assert cache.client("b").train.x.data_ptr() == other.train.x.data_ptr()


def test_inputs_that_no_layer_changes_are_not_copied_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    config, data = config_of("mlp"), images(Config())
    config.model.lora = None
    cache = FeatureCache(data, build_model(config, data), limit=0)
    assert torch.equal(cache.client("a").train.x, data.client("a").train.x)
    frozen = FeatureCache(data, build_model(config_of("mlp"), data), limit=0)
    with pytest.raises(ConfigError, match="TMPDIR"):
        frozen.client("a")


def test_features_without_room_are_one_line() -> None:
    examples = Examples(torch.ones(20, 64), torch.zeros(20, dtype=torch.int64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"TMPDIR: got .*, takes a folder with room for 5120"):
            mapped(examples)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(mapped(examples).x, examples.x)


def config_of(name: str) -> Config:
    config = Config()
    config.model.name = name
    return config
