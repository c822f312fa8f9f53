"""Sentence encoders of transformers as a trunk: ``model.name=sentence:<name or folder>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fedpers.models.backbones import Backbone, Stage
from fedpers.pretrained import load_pretrained
from fedpers.progress import Progress

BATCH = 64  # texts of about one length in a forward pass


class SentenceEncoder(Backbone):
    """Mean of the last layer over a text's tokens, scaled to norm 1, then a linear layer ``top``.

    So sentence-transformers pool (Reimers and Gurevych 2019, 1908.10084). ``top`` is the identity
    until an adapter moves it: LoRA there costs next to nothing, as what lies below is computed once
    for each text. ``model.lora.target=[query,value]`` adapts the encoder itself.

    Args:
        encoder: a model of transformers, called with token ids and attention mask.
        feature_dim: d, the width of its last layer.
    """

    kinds = ("text",)
    lora_target = ("trunk.top",)

    def __init__(self, encoder: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.encoder, self.feature_dim = encoder, feature_dim
        self.top = nn.Linear(feature_dim, feature_dim)
        nn.init.eye_(self.top.weight)
        nn.init.zeros_(self.top.bias)

    def stages(self) -> Sequence[Stage]:
        """The encoder, then ``top``; from x [batch, 2, L], token ids and attention mask."""
        return Stage(("encoder",), self._embed), Stage(("top",), lambda x: self.top(x))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or len(x) == 0:
            return self._pool(x)
        # Short texts together, so that little of what is computed is padding.
        order = x[:, 1].sum(1).argsort(stable=True)
        progress, pieces = Progress("encoding", len(x), "texts"), list[torch.Tensor]()
        for piece in torch.split(x[order], BATCH):
            progress.at(len(pieces) * BATCH)
            pieces.append(self._pool(piece))
        return torch.cat(pieces)[order.argsort()]

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 0:
            return torch.zeros(0, self.feature_dim, device=x.device)
        used = x[:, 1].any(0).nonzero()  # what is padded behind all texts is left away
        x = x[:, :, : int(used.max()) + 1]
        tokens = self.encoder(input_ids=x[:, 0], attention_mask=x[:, 1]).last_hidden_state
        mask = x[:, 1, :, None].to(tokens.dtype)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1).clamp_min(1), dim=1)


def load_sentence(model_name: str) -> SentenceEncoder:
    """The encoder ``sentence:<name or folder>``; ``sentence:minilm`` is the packaged MiniLM.

    What is on this machine is used; only else is the hub asked. Weights are read from safetensors,
    as float32.

    Raises:
        ConfigError: no such model, or one without a ``hidden_size``.
    """
    import transformers

    def load(name: str, local_files_only: bool) -> Any:
        model = transformers.AutoModel.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local_files_only,
        )
        if not isinstance(getattr(model.config, "hidden_size", None), int):
            raise ValueError("its configuration has no hidden_size")
        return model

    model = load_pretrained(model_name, "an encoder of text, stored as safetensors", load)
    return SentenceEncoder(model.eval(), model.config.hidden_size)
