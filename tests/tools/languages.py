"""Tiny language models with a tokenizer of bytes, and texts of clients that talk differently."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fedpers.config import Config, load_config

SAID = "the cat dog sat on a mat and ran away from home to sea with my old red hat"
KINDS = ("llama", "gpt2", "qwen")


def save_model(kind: str, folder: Path, *, blocks: int = 3, bos: bool = False) -> str:
    """A random model of a kind, three blocks of width 16, in a folder; its ``model.name``."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    tokenizer = byte_tokenizer(bos=bos)
    end = len(tokenizer) - 1
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": end,
        "initializer_range": 0.3,
    }
    torch.manual_seed(1)
    if kind == "gpt2":
        wide = {"n_embd": 16, "n_layer": blocks, "n_head": 2, "n_positions": 64}
        model: Any = GPT2LMHeadModel(GPT2Config(**shape, **wide))
    else:
        shape |= {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": blocks,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        }
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def byte_tokenizer(*, bos: bool = False) -> Any:
    """A token a byte, and one for the end; no padding. With ``bos`` it begins each text with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {sign: number for number, sign in enumerate([*alphabet, "<end>"])}
    made = Tokenizer(models.BPE(known, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<end> $A", special_tokens=[("<end>", len(alphabet))]
        )
    given = {"bos_token": "<end>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", **given)


def write_texts(path: Path, clients: int = 4, texts: int = 16) -> Path:
    """Texts of clients that have four words each, some of them with a context."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for client in range(clients):
            own = SAID.split()[4 * client : 4 * client + 4]
            for number in range(texts):
                said = [rng.choice(own) for _ in range(5)]
                row = {"user": f"play/{client}", "text": " ".join(said[2:])}
                row |= {"before": " ".join(said[:2])} if number % 3 else {}
                file.write(json.dumps(row) + "\n")
    return path


def settings(folder: Path, model: str, overrides: Sequence[str] = ()) -> Config:
    """A run of two rounds on such texts."""
    texts = write_texts(folder / "texts.jsonl")
    given = [
        "rounds=2",
        "task.name=causal-lm",
        "data.name=jsonl",
        f"data.path={texts}",
        "data.columns.text=[text]",
        "data.columns.context=before",
        "data.columns.client=user",
        "data.partition.name=natural",
        "data.split=blocks",
        "data.public_fraction=0",
        "data.max_tokens=32",
        f"model.name={model}",
        "model.dtype=float32",
        "model.lora={rank: 2, alpha: 4, share: both, layers: 2}",
        "model.head=last-1",
        "training={batch_size: 4, lr: 0.1, optimizer: adam}",
        "evaluation.outside=8",
    ]
    return load_config(None, [*given, *overrides])
