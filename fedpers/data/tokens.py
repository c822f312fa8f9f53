"""Texts as the token ids of the model that reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from fedpers.errors import ConfigError, DataError
from fedpers.pretrained import PREFIX, SENTENCE, load_pretrained
from fedpers.tasks.causal_lm import NOT_SCORED

log = logging.getLogger("fedpers")


def tokenize(model_name: str, texts: list[str], max_tokens: int) -> torch.Tensor:
    """Token ids and attention mask of ``texts`` for ``hf:`` or ``sentence:<name or folder>``.

    Returns:
        int64 [n, 2, L], cut at ``max_tokens`` and padded to the longest, L.

    Raises:
        ConfigError: the model takes no text, does not exist, or comes without a tokenizer.
    """
    tokenizer = load_tokenizer(model_name)
    if not texts:
        return torch.zeros(0, 2, 1, dtype=torch.int64)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = min(max_tokens, tokenizer.model_max_length)
    tokens = tokenizer(
        texts, padding="longest", truncation=True, max_length=length, return_tensors="pt"
    )
    return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1)


def continuations(
    model_name: str, contexts: Sequence[str], texts: Sequence[str], max_tokens: int, where: str
) -> torch.Tensor:
    """Texts behind their contexts, for a language model; of several lengths, padded at the end.

    A text is cut at its end, its context at its beginning, to ``max_tokens`` together. The first
    token of all is never scored: nothing comes before it.

    Args:
        contexts: one a text, each with what stands between the two at its end; "" for none.
        where: the file and column, for messages.

    Returns:
        int64 [n, 3, max_tokens]: token ids, which of them are there, which of them are scored.

    Raises:
        ConfigError: as ``tokenize``.
        DataError: a text without a token that is scored.
    """
    tokenizer = load_tokenizer(model_name)
    start = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
    found = torch.zeros(len(texts), 3, max_tokens, dtype=torch.int64)
    if not texts:
        return found
    befores, owns = (
        tokenizer(list(given), add_special_tokens=False)["input_ids"] for given in (contexts, texts)
    )
    if cut := sum(len(own) > max_tokens - len(start) for own in owns):
        log.info(
            "%s: %d of %d texts are cut at data.max_tokens=%d", where, cut, len(owns), max_tokens
        )
    for row, (before, own) in enumerate(zip(befores, owns, strict=True)):
        own = own[: max_tokens - len(start)]
        room = max_tokens - len(start) - len(own)
        ids = torch.tensor([*start, *before[max(0, len(before) - room) :], *own])
        first = len(ids) - len(own)
        if not own or len(ids) < 2:
            takes = "a text of at least one token behind another; drop or fill that row"
            raise DataError(f"{where}: got {texts[row]!r} in row {row} (from 0), takes {takes}")
        found[row, 0, : len(ids)], found[row, 1, : len(ids)] = ids, 1
        found[row, 2, max(1, first) : len(ids)] = 1
    return found


def targets_of(x: torch.Tensor) -> torch.Tensor:
    """From ``continuations`` [n, 3, L] the tokens that are scored, int64 [n, L - 1]; -100 where
    none is."""
    return torch.where(x[:, 2] == 1, x[:, 0], NOT_SCORED)[:, 1:]


def load_tokenizer(model_name: str) -> Any:
    """The tokenizer that comes with ``hf:`` or ``sentence:<name or folder>``.

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

    return load_pretrained(model_name, "a model that comes with a tokenizer", load)
