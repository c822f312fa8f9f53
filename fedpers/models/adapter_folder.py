"""A client's model as a folder that PEFT reads."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedpers.config import Config
from fedpers.models.personal import PersonalModel, clean_name
from fedpers.parts import Parts


def save_adapter(
    model: PersonalModel, folder: Path, config: Config, manifest: Mapping[str, Any]
) -> None:
    """Write ``model`` as a standard PEFT folder, all at once or not at all.

    ``adapter_model.safetensors`` holds the LoRA factors and the head, ``adapter_config.json``
    the LoRA settings; ``PeftModel.from_pretrained(base_model(config, data), folder)`` loads
    them. With ``lora: null`` the folder holds ``model.safetensors`` (body and head) instead.
    Slots that a method added go to ``slots.safetensors`` (see ``Parts.load``), the JSON-able
    ``manifest`` to ``manifest.json``. A folder that exists is replaced.
    """
    text = json.dumps(dict(manifest), indent=2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        new = Path(staging) / "new"
        new.mkdir()
        (new / "manifest.json").write_text(text + "\n", encoding="utf-8")
        if config.model.lora is None:
            _save({**model.read("body"), **model.read("head")}, new / "model.safetensors")
        else:
            _save_peft(model, new, config)
        added = [slot for slot in model.slots if slot not in ("body", "head", "private")]
        if added:
            Parts({slot: model.read(slot) for slot in added}).save(new / "slots.safetensors")
        if folder.exists():
            os.rename(folder, Path(staging) / "old")
        os.rename(new, folder)


def _save_peft(model: PersonalModel, folder: Path, config: Config) -> None:
    from peft import LoraConfig

    lora = config.model.lora
    assert lora is not None
    factors = {
        clean_name(path): tensor.detach().cpu().contiguous()
        for path, tensor in model.trunk.named_parameters(prefix="trunk")
        if ".lora_" in path
    }
    tensors = {f"base_model.model.{name}.weight": tensor for name, tensor in factors.items()}
    tensors |= {f"base_model.model.{name}": tensor for name, tensor in model.read("head").items()}
    # PEFT takes every module whose path ends so; a trunk may have a "head" of its own.
    ambiguous = any(path.endswith("head") for path, _ in model.trunk.named_modules())
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=sorted({name.rpartition(".lora_")[0] for name in factors}),
        modules_to_save=["base_model.model.head" if ambiguous else "head"],
        base_model_name_or_path=config.model.name,
        inference_mode=True,
    )
    _save(tensors, folder / "adapter_model.safetensors")
    settings.save_pretrained(str(folder))


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    # Cloned, since safetensors refuses views of one vector, which a part's tensors are.
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, {"format": "pt"})
