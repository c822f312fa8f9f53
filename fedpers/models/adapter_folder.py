"""A client's model as a folder that PEFT reads."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedpers.config import Config
from fedpers.errors import DataError, line_of
from fedpers.models.personal import PersonalModel, clean_name
from fedpers.parts import Part, Parts
from fedpers.pretrained import pretrained_name

TRUNK = "trunk.model."
"""Where a model of transformers is in ours."""


def save_adapter(
    model: PersonalModel, folder: Path, config: Config, manifest: Mapping[str, Any]
) -> None:
    """Write ``model`` as a standard PEFT folder, all at once or not at all.

    ``adapter_model.safetensors`` holds the LoRA factors and the head, ``adapter_config.json``
    the LoRA settings; ``PeftModel.from_pretrained(base_model(config, data), folder)`` loads
    them, or of a language model ``PeftModel.from_pretrained`` of the model itself. With ``lora:
    null`` the folder holds ``model.safetensors`` (body and head) instead.
    Slots that a method added go to ``slots.safetensors`` (see ``Parts.load``), the JSON-able
    ``manifest`` to ``manifest.json``. A folder that exists is replaced.
    """
    with whole_folder(folder, manifest) as new:
        write_adapter(model, new, config)


@contextmanager
def whole_folder(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to fill that takes the place of ``folder`` once it is full; an error leaves nothing.

    The JSON-able ``manifest`` is in it already, as ``manifest.json``.
    """
    text = json.dumps(dict(manifest), indent=2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        new = Path(staging) / "new"
        new.mkdir()
        (new / "manifest.json").write_text(text + "\n", encoding="utf-8")
        yield new
        if folder.exists():
            os.rename(folder, Path(staging) / "old")
        os.rename(new, folder)


def write_adapter(model: PersonalModel, folder: Path, config: Config) -> None:
    """The tensors of ``save_adapter``, into a folder that is there."""
    if config.model.lora is None:
        save_tensors({**model.read("body"), **model.read("head")}, folder / "model.safetensors")
    else:
        _save_peft(model, folder, config)
    added = added_slots(model)
    if added:
        Parts({slot: model.read(slot) for slot in added}).save(folder / "slots.safetensors")


@torch.no_grad()
def load_adapter(model: PersonalModel, folder: Path) -> dict[str, Any]:
    """Copy what ``save_adapter`` wrote into a model of the same settings; returns the manifest.

    Raises:
        DataError: a file is missing or damaged, or does not fit the model.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        whole, added = folder / "model.safetensors", folder / "slots.safetensors"
        if whole.exists():
            saved = load_file(whole)
            model.write("body", Part.of({name: saved[name] for name in model.slots["body"]}))
        else:
            tensors = load_file(folder / "adapter_model.safetensors")
            saved = {name.removeprefix("base_model.model."): t for name, t in tensors.items()}
            for name, factor in lora_factors(model).items():
                factor.copy_(saved[f"{name}.weight"])
        if model.own_head:
            model.write("head", Part.of({name: saved[name] for name in model.slots["head"]}))
        for slot, part in (Parts.load(added) if added.exists() else Parts()).items():
            model.write(slot, part)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = line_of(error)
        raise DataError(f"{folder}: cannot be read as a client's model ({reason})") from None
    return dict(manifest)


def _save_peft(model: PersonalModel, folder: Path, config: Config) -> None:
    from peft import LoraConfig

    lora = config.model.lora
    assert lora is not None
    factors, heads = lora_factors(model), list[str]()
    tensors = {
        f"base_model.model.{name}.weight": factor.cpu().contiguous()
        for name, factor in factors.items()
    }
    if model.own_head:
        head = model.read("head").items()
        tensors |= {f"base_model.model.{name}": tensor for name, tensor in head}
        # PEFT takes every module whose path ends so; a trunk may have a "head" of its own.
        ambiguous = any(path.endswith("head") for path, _ in model.trunk.named_modules())
        heads = ["base_model.model.head" if ambiguous else "head"]
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=sorted({name.rpartition(".lora_")[0] for name in factors}),
        modules_to_save=heads or None,
        base_model_name_or_path=pretrained_name(config.model.name),
        inference_mode=True,
    )
    save_tensors(tensors, folder / "adapter_model.safetensors")
    settings.save_pretrained(str(folder))


def lora_factors(model: PersonalModel) -> dict[str, torch.Tensor]:
    """The LoRA factors under the names that PEFT has for them: within the model of transformers
    where that is all there is, else within the whole."""
    start = "" if model.own_head else TRUNK
    return {
        clean_name(path).removeprefix(start): factor.detach()
        for path, factor in model.trunk.named_parameters(prefix="trunk")
        if ".lora_" in path
    }


def added_slots(model: PersonalModel) -> list[str]:
    """The slots that a method added."""
    return [slot for slot in model.slots if slot not in ("body", "head", "private")]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file that transformers and PEFT read."""
    # Cloned, since safetensors refuses views of one vector, which a part's tensors are.
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})
