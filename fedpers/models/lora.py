"""LoRA adapters (2106.09685), injected into a trunk by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from fedpers.config import Lora
from fedpers.errors import ConfigError
from fedpers.parts import Part
from fedpers.seeding import seeded, torch_generator

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def add_lora(trunk: nn.Module, lora: Lora, default: Sequence[str], seed: int) -> None:
    """Inject adapters into a frozen ``trunk``, in place: output + (alpha / rank) B A input.

    A starts at random from the run's seed, the same in every process; B starts at zero, so that
    the trunk computes what it did. B is trainable, and A too unless ``lora.share`` is ``ffa``.

    Args:
        trunk: a module with Linear or Conv layers.
        lora: the settings.
        default: the targets if the settings name none.
        seed: the run's seed.

    Raises:
        ConfigError: a target that no layer is called.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = target_layers(trunk, lora.target or default)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)  # type: ignore[arg-type]
    with seeded(seed, "model", "lora"):
        try:
            inject_adapter_in_model(settings, trunk)
        except ValueError as error:
            takes = f"layers that PEFT adapts ({' '.join(str(error).split())})"
            raise ConfigError("model.lora", targets, takes) from None
    for path, parameter in trunk.named_parameters():
        if ".lora_A." in path:
            generator = torch_generator(seed, "model", "lora", path)
            nn.init.kaiming_uniform_(parameter, a=sqrt(5), generator=generator)
            parameter.requires_grad_(lora.share != "ffa")
    trunk.eval()


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
    # By exact type: a subclass may be a layer whose forward is never called, such as the output
    # layer of nn.MultiheadAttention, and an adapter there would silently do nothing.
    paths = [path for path, module in trunk.named_modules() if type(module) in LAYERS]
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
