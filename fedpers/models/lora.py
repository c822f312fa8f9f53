"""LoRA adapters (2106.09685), injected into a trunk by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from fedpers.config import Lora
from fedpers.errors import ConfigError, line_of
from fedpers.models.backbones import Backbone
from fedpers.parts import Part
from fedpers.seeding import seeded, torch_generator


def add_lora(trunk: Backbone, lora: Lora, seed: int) -> None:
    """Inject adapters into a frozen ``trunk``, in place: output + (alpha / rank) B A input.

    A starts at random from the run's seed, the same in every process; B starts at zero, so that
    the trunk computes what it did. B is trainable, and A too unless ``lora.share`` is ``ffa``. Both
    are float32, whatever the trunk is.

    Args:
        trunk: with Linear or Conv layers; it says which of them if the settings name none.
        lora: the settings.
        seed: the run's seed.

    Raises:
        ConfigError: a target that no layer is called; ``layers`` of a trunk that has none.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = target_layers(trunk, lora.target or trunk.lora_target)
    targets = [path for path in targets if path.startswith(last_blocks(trunk, lora.layers))]
    if not targets:
        takes = f"names of layers in the last {lora.layers} blocks, where model.lora.layers is that"
        raise ConfigError("model.lora.target", lora.target, takes)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)  # type: ignore[arg-type]
    with seeded(seed, "model", "lora"):
        try:
            inject_adapter_in_model(settings, trunk)
        except ValueError as error:
            takes = f"layers that PEFT adapts ({line_of(error)})"
            raise ConfigError("model.lora", targets, takes) from None
    for path, parameter in trunk.named_parameters():
        if ".lora_" in path:
            parameter.data = parameter.data.float()
        if ".lora_A." in path:
            generator = torch_generator(seed, "model", "lora", path)
            nn.init.kaiming_uniform_(parameter, a=sqrt(5), generator=generator)
            parameter.requires_grad_(lora.share != "ffa")
    trunk.eval()


def last_blocks(
    trunk: Backbone, count: int | None, key: str = "model.lora.layers"
) -> tuple[str, ...]:
    """The beginnings of the paths of what is in a trunk's last blocks; for None of all of it that
    may be adapted.

    Raises:
        ConfigError: naming ``key``: there are fewer, or none.
    """
    path = trunk.blocks_path
    if count is None:
        return (f"{path}." if trunk.adapts_blocks_alone else "",)
    known = len(trunk.get_submodule(path)) if path else 0  # type: ignore[arg-type]
    if not 1 <= count <= known:
        takes = f"1 to {known}, its blocks" if known else "null for a model without blocks"
        raise ConfigError(key, count, takes)
    return tuple(f"{path}.{place}." for place in range(known - count, known))


def linear_layers() -> tuple[type[nn.Module], ...]:
    """The kinds of layers that compute x W + b; GPT-2's has its weight the other way round."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D


def product_error(weights: Tensor, bodies: Sequence[Part]) -> float | None:
    """How far a mean of factors is from the mean of products, in 0..; None without both factors.

    The Frobenius norm of mean(B_i A_i) - mean(B_i) mean(A_i) over that of mean(B_i A_i), all layers
    together. Zero where one factor is common to all clients (``share: ffa``).

    Args:
        weights: [K], summing to 1.
        bodies: K parts with tensors ``*.lora_A`` [rank, ...] and ``*.lora_B`` [out, rank, ...].
    """
    error = size = 0.0
    for name in bodies[0]:
        other = name.removesuffix(".lora_A") + ".lora_B"
        if not name.endswith(".lora_A") or other not in bodies[0]:
            continue
        a = torch.stack([body[name].flatten(1).float() for body in bodies])
        b = torch.stack([body[other].flatten(1).float() for body in bodies])
        exact = torch.einsum("k,kor,kri->oi", weights, b, a)
        mixed = torch.einsum("k,kor->or", weights, b) @ torch.einsum("k,kri->ri", weights, a)
        error += float((exact - mixed).square().sum())
        size += float(exact.square().sum())
    return sqrt(error / size) if size > 0 else None


def target_layers(trunk: nn.Module, targets: Sequence[str]) -> list[str]:
    """The paths, inside ``trunk``, of the layers that ``targets`` name.

    A target is a layer's path or the end of it: ``q``, ``blocks.2.q``, ``trunk.blocks.2.q``.

    Raises:
        ConfigError: no target, or one that no layer is called.
    """
    kinds = (*linear_layers(), nn.Conv1d, nn.Conv2d)
    # By exact type: a subclass may be a layer whose forward is never called, such as the output
    # layer of nn.MultiheadAttention, and an adapter there would silently do nothing.
    paths = [path for path, module in trunk.named_modules() if type(module) in kinds]
    chosen = set()
    for target in targets:
        found = {path for path in paths if f".trunk.{path}".endswith(f".{target}")}
        if not found:
            raise ConfigError("model.lora.target", list(targets), _takes(paths))
        chosen |= found
    if not chosen:
        raise ConfigError("model.lora.target", list(targets), _takes(paths))
    return [path for path in paths if path in chosen]


def _takes(paths: Sequence[str]) -> str:
    # A large transformer has hundreds of layers, but few distinct last names.
    names = list(paths)
    if len(names) > 24:
        names = sorted({path.rpartition(".")[2] for path in paths})
    return f"names of Linear or Conv layers: {', '.join(names)}"
