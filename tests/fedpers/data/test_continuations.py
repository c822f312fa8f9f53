from pathlib import Path

import pytest
import torch
from languages import byte_tokenizer, settings, write_texts

from fedpers.data import load_data
from fedpers.data.tokens import continuations, targets_of
from fedpers.errors import ConfigError, DataError, FedpersError


@pytest.fixture
def name(tmp_path: Path) -> str:
    """A folder with a tokenizer."""
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    (tmp_path / "bytes" / "config.json").write_text('{"model_type": "llama"}')
    return f"hf:{tmp_path / 'bytes'}"


def read(ids: torch.Tensor) -> str:
    return str(byte_tokenizer().decode(ids))


def test_a_text_behind_its_context(name: str) -> None:
    x = continuations(name, ["ab\n", ""], ["cat", "dog"], 8, "here")
    assert x.shape == (2, 3, 8)
    assert read(x[0, 0, :6]) == "ab\ncat"
    assert x[0, 1:].tolist() == [[1] * 6 + [0] * 2, [0, 0, 0, 1, 1, 1, 0, 0]]
    assert x[1, 1:, :4].tolist() == [[1, 1, 1, 0], [0, 1, 1, 0]]  # nothing is before the first
    targets = targets_of(x)
    assert targets.shape == (2, 7)
    assert read(targets[0][targets[0] != -100]) == "cat"
    assert targets[1].tolist()[2:] == [-100] * 5


def test_a_long_text_is_cut_at_its_end_and_its_context_at_its_beginning(name: str) -> None:
    x = continuations(name, ["abcdef", "abcdef"], ["123", "123456789"], 6, "here")
    assert read(x[0, 0]) == "def123"
    assert read(x[1, 0]) == "123456"
    assert x[1, 2].tolist() == [0, 1, 1, 1, 1, 1]


def test_a_tokenizer_that_begins_a_text(tmp_path: Path) -> None:
    byte_tokenizer(bos=True).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    x = continuations(f"hf:{tmp_path}", [""], ["a"], 4, "here")
    assert x[0, 1:].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_a_token_to_score_is_one_line(name: str, text: str) -> None:
    with pytest.raises(DataError, match=f"^here: got '{text}' in row 1 .*drop or fill that row$"):
        continuations(name, ["", ""], ["ab", text], 8, "here")


def test_clients_texts_from_a_file(tmp_path: Path, name: str) -> None:
    data = load_data(settings(tmp_path, name))
    assert data.clients == [f"play/{k}" for k in range(4)]
    assert data.signature.kind == "language" and data.signature.shape == (3, 32)
    own = data.client("play/0").train
    text = read(own.x[0, 0][own.x[0, 1] == 1])
    assert set(text.split()) <= {"the", "cat", "dog", "sat"}
    some = load_data(settings(tmp_path, name, ["data.only=[play/2]"]))
    assert some.clients == ["play/2"]
    assert torch.equal(some.client("play/2").test.x, data.client("play/2").test.x)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.only=[nobody]", "data.only: got 'nobody', takes names of natural clients: play/0"),
        ("data.columns.context=there", "data.columns.context: got 'there'"),
        ("data.columns.text=[]", "data.columns"),
        ("data.path=no.jsonl", "data.path: got 'no.jsonl'"),
        ("model.name=mlp", "model.name: got 'mlp', takes hf:"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, name: str, override: str, said: str) -> None:
    with pytest.raises(FedpersError, match=said) as found:
        load_data(settings(tmp_path, name, [override]))
    assert "\n" not in str(found.value)


def test_lines_that_are_no_objects(tmp_path: Path, name: str) -> None:
    config = settings(tmp_path, name)
    for content in ("{\n", "[1]\n", ""):
        Path(str(config.data.path)).write_text(content)
        with pytest.raises(DataError, match=r"texts\.jsonl: cannot be read"):
            load_data(config)


def test_a_path_in_the_folder_of_data(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    write_texts(tmp_path / "own" / "said.jsonl", clients=2)
    config = settings(tmp_path, name, ["data.path=said.jsonl"])
    with pytest.raises(ConfigError, match="FEDPERS_DATA"):
        load_data(config)
    monkeypatch.setenv("FEDPERS_DATA", str(tmp_path / "own"))
    assert len(load_data(config).clients) == 2
