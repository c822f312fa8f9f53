"""LoRA adapters (2106.09685), injected into a trunk by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from torch import nn

from fedpers.config import Lora
from fedpers.errors import ConfigError
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
