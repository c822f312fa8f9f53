"""For all tests: one thread (sums do not depend on the machine), no deadlines, no telemetry.

Property tests try the same examples each time, and many new ones in `make test-slow`; what is
printed when one fails has the line that tries it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.register_profile(
    "new", deadline=None, max_examples=1000, derandomize=False, print_blob=True
)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def undeclared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was in an answer of a private client and may not leave it: nothing, in any test."""
    found: list[str] = []
    monkeypatch.setattr("clients.node.door.undeclared", found.append)
    yield found
    assert found == []


@pytest.fixture
def tiny_bert(tmp_path: Path) -> str:
    """The name of a random BERT of two layers with a tokenizer, saved in a folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "bert"
    words = "the cat dog sat on a mat and ran away from home to sea with my old red hat now"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words.split(), *"bcdefghij"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return f"hf:{folder}"
