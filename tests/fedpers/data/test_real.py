"""The real data sets, where the folder FEDPERS_DATA has them."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpers.config import load_config
from fedpers.data import FederatedData, Signature, load_data, load_table
from fedpers.data.partition import deal
from fedpers.data.public import draw_public
from fedpers.data.splits import split_rows

FOLDER = os.environ.get("FEDPERS_DATA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="the folder FEDPERS_DATA is not set")


def load(*overrides: str) -> FederatedData:
    return load_data(load_config(None, overrides))


def test_fashion_mnist_loads_fast_with_a_users_partition() -> None:
    path = Path(str(FOLDER)) / "w1_20k_partition.npz"
    if not path.is_file():
        pytest.skip("no partition file in FEDPERS_DATA")
    name = ("data.name=fashion-mnist", "data.partition.name=file")
    started = time.perf_counter()
    data = load(*name, f"data.partition.path={path}", "data.public_fraction=0.1")
    assert time.perf_counter() - started < 2

    assert data.signature == Signature("image", (1, 28, 28)) and data.task.outputs == 10
    assert len(data.clients) == 20 and len(data.public) == 7000
    clients = [data.client(client) for client in data.clients]
    assert sum(len(c.train) + len(c.val) for c in clients) == 14994
    assert sum(len(c.test) for c in clients) == 5006
    assert (data.public.x.min(), data.public.x.max()) == (-1, 1)


@pytest.mark.parametrize("public", ["data.public_fraction=0.2", "data.public_clients=2"])
def test_no_window_of_motion_overlaps_one_that_it_is_tested_on(public: str) -> None:
    settings = ("data.name=ucihar", "data.partition.name=natural", "data.split=blocks")
    data = load(*settings, public)
    assert data.signature == Signature("signal", (9, 128)) and data.task.outputs == 6
    assert len(data.clients) == (28 if "clients" in public else 30)

    def halves(x: torch.Tensor, start: int) -> set[bytes]:
        return {window[:, start : start + 64].numpy().tobytes() for window in x}

    def overlaps(seen: torch.Tensor, held_out: torch.Tensor) -> int:
        ahead = halves(seen, 64) & halves(held_out, 0)
        return len(ahead | (halves(seen, 0) & halves(held_out, 64)))

    clients = [data.client(client) for client in data.clients]
    train, val, test = (
        torch.cat([getattr(client, side).x for client in clients])
        for side in ("train", "val", "test")
    )
    assert overlaps(train, train) > 1000  # they do overlap where they may
    assert overlaps(train, test) == overlaps(val, test) == overlaps(train, val) == 0
    assert overlaps(data.public.x, test) == overlaps(data.public.x, val) == 0
    assert min(len(client.test) for client in clients) > 20
    random = load("data.name=ucihar", "data.partition.name=natural", public)
    one = random.client(random.clients[0])
    assert overlaps(one.train.x, one.test.x) > 0  # and this test would see it


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["?", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(letters, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="?", unk_token="?")
    fast.save_pretrained(tmp_path / "letters")
    return f"model.name=hf:{tmp_path / 'letters'}"


@pytest.mark.parametrize("public", ["data.public_fraction=0.2", "data.public_clients=1"])
def test_no_text_is_on_two_sides(public: str, tokenizer: str) -> None:
    settings = ("data.name=convabuse", "data.partition.name=natural", "data.split=group")
    config = load_config(None, [*settings, public, tokenizer])
    table = load_table(config)
    assert table.kind == "text" and len(table) == 12768 and table.task.outputs == 2
    assert table.group is not None and len(np.unique(table.group)) == 3573

    public_rows, rest = draw_public(table, config, np.arange(len(table)))
    splits = split_rows(deal(table, rest, config), table, config, config.data.test_fraction)
    texts = {
        side: set(table.group[np.concatenate([getattr(s, side) for s in splits.values()])])
        for side in ("train", "val", "test")
    }
    assert len(splits) == (7 if "clients" in public else 8)
    assert texts["test"].isdisjoint(texts["train"] | texts["val"])
    assert texts["val"].isdisjoint(texts["train"])
    assert set(table.group[public_rows]).isdisjoint(texts["test"] | texts["val"])
    total = sum(map(len, texts.values()))
    assert len(texts["test"]) / total == pytest.approx(0.25, abs=0.03)
    assert len(texts["val"]) / total == pytest.approx(0.15, abs=0.03)
