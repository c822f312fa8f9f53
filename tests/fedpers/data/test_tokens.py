"""Texts as token ids, by a tokenizer in a folder."""

from __future__ import annotations

import pytest
import torch

from fedpers.data.tokens import tokenize
from fedpers.errors import ConfigError


def test_ids_and_masks_are_cut_and_padded(tiny_bert: str) -> None:
    tokens = tokenize(tiny_bert, ["the cat sat", "a"], 128)
    # [CLS] the cat sat [SEP] / [CLS] a [SEP] and padding; ids are lines of the vocabulary.
    ids = [[2, 5, 6, 8, 3], [2, 10, 3, 0, 0]]
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[ids[0], [1] * 5], [ids[1], [1, 1, 1, 0, 0]]]
    assert tokenize(tiny_bert, ["cat " * 500], 128).shape == (1, 2, 128)
    assert tokenize(tiny_bert, [], 128).shape == (0, 2, 1)


def test_text_needs_a_model_of_transformers() -> None:
    with pytest.raises(ConfigError, match="sentence:<name or folder> for text data"):
        tokenize("mlp", ["a"], 128)
