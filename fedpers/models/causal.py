"""Causal language models of transformers as a trunk: ``model.name=hf:<name or folder>``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedpers.errors import ConfigError
from fedpers.models.backbones import Backbone, Stage
from fedpers.models.hf import query_value
from fedpers.models.token_scores import TokenScores
from fedpers.outputs import Outputs
from fedpers.packaged import quiet
from fedpers.pretrained import load_pretrained

BATCH = 16  # texts of about one length in a forward pass without gradients
HERE, SCORED = 1, 2  # bits beside a token's id


class CausalTrunk(Backbone):
    """A causal language model; x [batch, 3, L] holds token ids, which are there, which are scored.

    What passes from stage to stage are hidden states with the tokens themselves behind them, bit by
    bit: [batch, L, d + k], in the model's dtype. The last blocks, in which something is trained,
    are the last stage; what lies below can be computed once for each text.

    A text is padded at its end, where no token that comes before can see it.

    Args:
        model: of transformers, with its output layer; nothing in it drops out at random.

    Raises:
        ConfigError: its parts are not where those of such models are, or its likelihoods are more
            than a softmax of its output layer.
    """

    kinds = ("language",)
    adapts_blocks_alone = True

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model = model
        self.inner, self.blocks_path = _blocks(model, name)
        self.feature_dim = int(model.get_output_embeddings().in_features)
        self.lora_target = query_value(model)
        self._check(name)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, in order."""
        found = self.get_submodule(self.blocks_path)
        assert isinstance(found, nn.ModuleList)
        return found

    def stages(self) -> Sequence[Stage]:
        """The blocks in which nothing is trained, if there are any; and the rest."""
        blocks = self.blocks
        moving = [any(p.requires_grad for p in block.parameters()) for block in blocks]
        first = moving.index(True) if True in moving else 0
        names = [f"{self.blocks_path}.{place}" for place in range(len(blocks))]
        if first == 0:
            return (Stage(("model",), self._whole),)
        return (
            Stage(tuple(names[:first]), lambda x: self._below(x, first)),
            Stage(tuple(names[first:]), lambda x: self._above(x, first)),
        )

    def read_out(self, states: Tensor) -> Outputs:
        """The log-probabilities of the scored tokens and of the likeliest at their places,
        [batch, 2 (L - 1)]; features are the hidden states from which the first is predicted."""
        hidden, ids, marks = unpacked(states, self.feature_dim)
        scored = (marks & SCORED).bool()[:, 1:]
        rows, places = scored.nonzero(as_tuple=True)
        layer = self.model.get_output_embeddings()
        chosen = hidden[rows, places].to(layer.weight.dtype)
        known, top = TokenScores.apply(  # type: ignore[no-untyped-call]
            chosen, layer.weight, layer.bias, ids[rows, places + 1]
        )
        nothing = torch.zeros(scored.shape, device=hidden.device)
        halves = [nothing.index_put((rows, places), found) for found in (known, top)]
        first = scored.int().argmax(1)
        features = hidden[torch.arange(len(hidden), device=hidden.device), first]
        return Outputs(features, torch.cat(halves, 1))

    @torch.no_grad()
    def generate(self, ids: Tensor, most: int) -> Tensor:
        """As any language model's; until it says that the text ends."""
        given = ids[None]
        end = self.model.config.get_text_config().eos_token_id
        end = end[0] if isinstance(end, list) else end
        with quiet():
            found: Tensor = self.model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=0 if end is None else end,
            )
        return found[0, len(ids) :]

    def _whole(self, x: Tensor) -> Tensor:
        """From tokens to the last hidden states; the rows stay in their order, as clients that are
        trained at once need it."""
        ids, marks = _tokens(x)
        return _padded(packed(self._run(ids, {}), ids, marks), x.shape[2])

    def _below(self, x: Tensor, first: int) -> Tensor:
        """What comes into block ``first``; short texts together, so that little of what is computed
        is padding."""
        if not len(x):
            dtype = self.model.get_output_embeddings().weight.dtype
            hidden = torch.zeros(0, x.shape[2], self.feature_dim, dtype=dtype, device=x.device)
            return packed(hidden, x[:, 0], x[:, 1])
        came: list[Tensor] = []

        def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            came.append(hidden)
            return hidden

        instead = {first: note, **dict.fromkeys(range(first + 1, len(self.blocks)), _same)}
        order, pieces = x[:, 1].sum(1).argsort(stable=True), []
        for rows in torch.split(order, BATCH):
            ids, marks = _tokens(x[rows])
            self._run(ids, instead)
            pieces.append(_padded(packed(came.pop(), ids, marks), x.shape[2]))
        return torch.cat(pieces)[order.argsort()]

    def _above(self, states: Tensor, first: int) -> Tensor:
        """From what comes into block ``first``."""
        used = _longest(unpacked(states, self.feature_dim)[2] & HERE)
        hidden, ids, marks = unpacked(states[:, :used], self.feature_dim)

        def instead(_: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden

        skipped = {**dict.fromkeys(range(first - 1), _same), first - 1: instead}
        return _padded(packed(self._run(ids, skipped), ids, marks), states.shape[1])

    def _run(self, ids: Tensor, instead: Mapping[int, Callable[..., Tensor]]) -> Tensor:
        """The last hidden states [batch, L, d], with other functions in some blocks' places."""
        with self._replaced(instead):
            found = self.inner_model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            )
        return found.last_hidden_state  # type: ignore[no-any-return]

    @property
    def inner_model(self) -> Any:
        """The model without its output layer."""
        return self.get_submodule(self.inner)

    @contextmanager
    def _replaced(self, instead: Mapping[int, Callable[..., Tensor]]) -> Iterator[None]:
        blocks = self.blocks
        for place, run in instead.items():
            blocks[place].forward = run
        try:
            yield
        finally:
            for place in instead:
                del blocks[place].forward

    @torch.no_grad()
    def _check(self, name: str) -> None:
        """That likelihoods here are the model's own, whole and cut in two."""
        words = self.model.get_output_embeddings().out_features
        ids = torch.arange(2, 10)[None] % words
        x = torch.stack([ids, torch.ones_like(ids), torch.ones_like(ids)], 1)
        logits = self.model(input_ids=ids, use_cache=False).logits.float()
        own = logits.log_softmax(2)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        close = 1e-3 if next(self.model.parameters()).dtype == torch.float32 else 0.5
        half = max(1, len(self.blocks) // 2)
        ways = {"whole": self._whole(x), "cut in two": self._above(self._below(x, half), half)}
        for how, states in ways.items():
            found = self.read_out(states).scores[:, : own.shape[1]]
            if not torch.allclose(found, own, rtol=close, atol=close):
                takes = f"a model whose likelihoods are a softmax of its last layer ({how}, they "
                raise ConfigError("model.name", name, f"{takes}are not)")


def load_causal(model_name: str, dtype: str, length: int) -> CausalTrunk:
    """The language model ``hf:<name or folder>``; ``hf:smollm2`` is the packaged SmolLM2-135M.

    What is on this machine is used; only else is the hub asked. Weights are read from safetensors.

    Args:
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        length: tokens of an example.

    Raises:
        ConfigError: no such model, one that is not as others are, or that reads fewer tokens.
    """
    import transformers

    wanted = dtype_of(dtype)

    def load(name: str, local_files_only: bool) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            name,
            dtype=wanted,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local_files_only,
        )

    model = load_pretrained(model_name, "a causal language model, stored as safetensors", load)
    most = getattr(model.config.get_text_config(), "max_position_embeddings", length)
    if length > most:
        raise ConfigError("data.max_tokens", length, f"at most {most}, which {model_name} reads")
    return CausalTrunk(model.eval(), model_name)


def dtype_of(name: str) -> torch.dtype:
    """What frozen layers hold: ``auto`` is bfloat16 where there are units for it, which pays off
    only there."""
    fast = bool(torch.cpu._is_amx_tile_supported()) or (
        torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    )
    if name == "auto":
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def packed(hidden: Tensor, ids: Tensor, marks: Tensor) -> Tensor:
    """Hidden states [batch, L, d] with ids and marks [batch, L] behind them, whose bits are read
    as numbers of the same dtype."""
    bits = (4 * ids + marks).to(torch.int32)[..., None]
    return torch.cat([hidden, bits.view(hidden.dtype)], dim=2)


def unpacked(states: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What ``packed`` put together: hidden states, ids, marks."""
    bits = states.detach()[..., width:].contiguous().view(torch.int32)[..., 0].long()
    return states[..., :width], bits // 4, bits % 4


def _tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and marks [batch, L] of inputs, without what is padding in all of them."""
    ids, here, scored = x[:, :, : _longest(x[:, 1])].unbind(1)
    return ids, HERE * here + SCORED * scored


def _longest(here: Tensor) -> int:
    return max(1, int(here.sum(1).max())) if len(here) else 1


def _padded(states: Tensor, length: int) -> Tensor:
    return nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


def _same(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _blocks(model: Any, name: str) -> tuple[str, str]:
    """Where in a trunk the model without its output layer is, and its list of blocks."""
    inner, layer = model.base_model_prefix, model.get_output_embeddings()
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and count > 0
    ]
    if not hasattr(model, inner) or not isinstance(layer, nn.Linear) or len(found) != 1:
        takes = "a language model with one list of blocks and an output layer that is nn.Linear"
        raise ConfigError("model.name", name, takes)
    return f"model.{inner}", f"model.{found[0]}"
