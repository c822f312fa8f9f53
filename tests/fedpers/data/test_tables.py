from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fedpers.config import load_config
from fedpers.data import Table, load_table
from fedpers.errors import ConfigError, DataError, FedpersError

FEATURES = "data.columns.features=[a,b]"


def load(name: str, path: Path, *overrides: str) -> Table:
    return load_table(load_config(None, [f"data.name={name}", f"data.path={path}", *overrides]))


def saved(folder: Path, name: str, columns: dict[str, list[Any]]) -> Path:
    """``columns`` in a file, or folder, of the format that the source ``name`` reads."""
    path = folder / f"table.{name}"
    frame = pd.DataFrame(columns)
    if name == "csv":
        frame.to_csv(path, index=False)
    elif name == "parquet":
        frame.to_parquet(path)
    else:
        import datasets

        datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """The name of a model of which only a tokenizer of whole words is there."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "|", "hi", "you", "null", "bye"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    fast.save_pretrained(tmp_path / "words")
    return f"model.name=hf:{tmp_path / 'words'}"


@pytest.mark.parametrize("name", ["csv", "parquet", "folder"])
def test_features_labels_clients_and_groups(tmp_path: Path, name: str) -> None:
    columns = {"who": ["07", "7", "07"], "b": [1.5, 2, 3], "kind": ["x", "w", "w"]}
    columns |= {"a": [4, 5, 6], "of": [3, 3, 4], "unused": ["", "", ""]}
    names = ("data.columns.label=kind", "data.columns.client=who", "data.columns.group=of")
    table = load(name, saved(tmp_path, name, columns), FEATURES, *names)

    assert table.examples.x.tolist() == [[4, 1.5], [5, 2], [6, 3]]
    assert table.examples.x.dtype == torch.float32
    assert table.examples.y.tolist() == [1, 0, 0]
    assert table.client is not None and table.client.tolist() == ["07", "7", "07"]
    assert table.group is not None and table.group.tolist() == ["3", "3", "4"]
    assert (table.kind, table.signature.shape, table.task.outputs) == ("tabular", (2,), 2)
    assert table.task.names == ("w", "x")


def test_a_data_sets_own_names_of_classes_are_kept(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features(
        {"a": datasets.Value("float32"), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])}
    )
    rows = {"a": [0.0, 1.0, 2.0], "label": ["dog", "cat", "dog"]}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(tmp_path / "table"))
    table = load("folder", tmp_path / "table", "data.columns.features=[a]")
    assert table.task is not None and table.task.names == ("cat", "dog", "emu")
    assert table.examples.y.tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", ["csv", "parquet", "folder"])
def test_text_columns_are_joined_and_tokenised(tmp_path: Path, name: str, tokenizer: str) -> None:
    columns = {"second": ["you", "null"], "first": ["hi", "bye bye"], "label": [0, 1]}
    path = saved(tmp_path, name, columns)
    table = load(name, path, "data.columns.text=[first,second]", tokenizer)

    assert table.kind == "text" and table.signature.shape == (2, 4)
    assert table.examples.x.dtype == torch.int64
    assert table.examples.x.tolist() == [
        [[3, 2, 4, 0], [1, 1, 1, 0]],  # hi | you
        [[6, 6, 2, 5], [1, 1, 1, 1]],  # bye bye | null
    ]


def test_missing_text_is_empty(tmp_path: Path, tokenizer: str) -> None:
    for name in ("csv", "parquet", "folder"):
        path = saved(tmp_path, name, {"t": ["hi", None], "u": ["you", "you"], "label": [0, 1]})
        table = load(name, path, "data.columns.text=[t,u]", tokenizer)
        assert table.examples.x[:, 0].tolist() == [[3, 2, 4], [2, 4, 0]]


def test_images_of_each_source(tmp_path: Path) -> None:
    import datasets

    grey = [np.full((2, 3), value, np.uint8) for value in (0, 255)]
    files = []
    for k, pixels in enumerate(grey):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        files.append({"bytes": (tmp_path / f"{k}.png").read_bytes(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = datasets.Dataset.from_dict({"image": files, "label": [0, 1]}, features=features)
    images.save_to_disk(str(tmp_path / "folder"))
    pd.DataFrame({"image": files, "label": [0, 1]}).to_parquet(tmp_path / "table.parquet")
    pd.DataFrame({"image": ["0.png", "1.png"], "label": [0, 1]}).to_csv(tmp_path / "table.csv")

    for name, file in (("folder", "folder"), ("parquet", "table.parquet"), ("csv", "table.csv")):
        table = load(name, tmp_path / file, "data.columns.image=image")
        assert (table.kind, table.signature.shape) == ("image", (1, 2, 3))
        assert table.examples.x[:, 0, 0, 0].tolist() == [-1, 1]


def test_colour_wins_over_grey_and_sizes_must_agree(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3), 255, np.uint8)).save(tmp_path / "grey.png")
    red = np.zeros((2, 3, 3), np.uint8)
    red[:, :, 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    Image.fromarray(red[:1]).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no image")

    def table(*names: str) -> Table:
        path = saved(tmp_path, "csv", {"image": list(names), "label": [0, 1]})
        return load("csv", path, "data.columns.image=image")

    x = table("grey.png", "red.png").examples.x
    assert x.shape == (2, 3, 2, 3)
    assert x[:, :, 1, 2].tolist() == [[1, 1, 1], [1, -1, -1]]
    with pytest.raises(DataError, match="several sizes"):
        table("red.png", "small.png")
    for bad in ("broken.png", "nowhere.png"):
        with pytest.raises(DataError, match=f"{bad}: "):
            table("red.png", bad)


def test_all_splits_of_a_folder_are_one_table(tmp_path: Path) -> None:
    import datasets

    parts = {
        name: datasets.Dataset.from_dict({"a": [k], "b": [0], "label": [k]}).with_format("torch")
        for k, name in enumerate(("train", "test"))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    assert load("folder", tmp_path / "both", FEATURES).examples.x.tolist() == [[0, 0], [1, 0]]


GOOD = {"a": [1.0, 2.0], "b": [0, 1], "label": [0, 1], "who": ["x", "y"]}


@pytest.mark.parametrize("name", ["csv", "parquet", "folder"])
@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"a": [1.0, None]}, (), "inputs: got NaN.* row 1"),
        ({"a": [float("inf"), 0.0]}, (), "inputs: got NaN.* row 0"),
        ({"a": ["1", "one"]}, (), "a: got 'one' in row 1.* takes a number; name its values"),
        ({"label": [0, 2]}, (), "label: got classes 0, 2"),
        ({"label": ["yes", None]}, (), "label: got nothing in row 1"),
        ({"who": [None, "y"]}, ("data.columns.client=who",), "who: got nothing in row 0"),
        ({}, ("data.columns.label=y",), r"data\.columns\.label: got 'y', .* a, b, label, who"),
        ({}, ("data.columns.features=[c]",), r"data\.columns\.features: got 'c'"),
        ({}, ("data.columns.group=g",), r"data\.columns\.group: got 'g'"),
        ({}, ("data.columns.features=[]",), r"data\.columns: got None, takes exactly one of"),
        ({}, ("data.columns.image=a",), r"data\.columns: got 'features and image'"),
    ],
)
def test_bad_tables_are_one_line(
    tmp_path: Path, name: str, change: dict[str, Any], overrides: tuple[str, ...], message: str
) -> None:
    path = saved(tmp_path, name, {**GOOD, **change})
    with pytest.raises(FedpersError, match=message) as caught:
        load(name, path, FEATURES, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["csv", "parquet", "folder", "npz"])
def test_files_that_are_not_there_or_not_readable(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.path: got '.*nowhere'"):
        load(name, tmp_path / "nowhere", FEATURES)
    with pytest.raises(ConfigError, match=r"data\.path: got None"):
        load_table(load_config(None, [f"data.name={name}", FEATURES]))
    broken = tmp_path / "broken"
    broken.write_bytes(b'\xff\xfe"\x00,')
    for path in (broken, tmp_path):
        with pytest.raises(FedpersError) as caught:
            load(name, path, FEATURES)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
