"""Texts as the token ids of the model that reads them."""

from __future__ import annotations

from typing import Any

import torch

from fedpers.errors import ConfigError
from fedpers.pretrained import PREFIX, SENTENCE, load_pretrained

MAX_TOKENS = 128


def tokenize(model_name: str, texts: list[str]) -> torch.Tensor:
    """Token ids and attention mask of ``texts`` for ``hf:`` or ``sentence:<name or folder>``.

    Returns:
        int64 [n, 2, L], cut at 128 tokens and padded to the longest, L.

    Raises:
        ConfigError: the model takes no text, does not exist, or comes without a tokenizer.
    """
    if not model_name.startswith((PREFIX, SENTENCE)):
        takes = "hf:<name or folder> or sentence:<name or folder> for text data"
        raise ConfigError("model.name", model_name, takes)
    from transformers import AutoTokenizer

    def load(name: str, local_files_only: bool) -> Any:
        return AutoTokenizer.from_pretrained(
            name, local_files_only=local_files_only, trust_remote_code=False
        )

    tokenizer = load_pretrained(model_name, "a model that comes with a tokenizer", load)
    if not texts:
        return torch.zeros(0, 2, 1, dtype=torch.int64)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = min(MAX_TOKENS, tokenizer.model_max_length)
    tokens = tokenizer(
        texts, padding="longest", truncation=True, max_length=length, return_tensors="pt"
    )
    return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1)
