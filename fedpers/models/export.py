"""A client's model as a folder for others: for ``transformers`` and PEFT alone where they know the
backbone, else with all that it takes to load it here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import fedpers
from fedpers.config import Config
from fedpers.errors import ConfigError
from fedpers.models.adapter_folder import (
    TRUNK,
    added_slots,
    save_adapter,
    save_tensors,
    whole_folder,
    write_adapter,
)
from fedpers.models.build import base_model
from fedpers.models.hf import CLASSIFIERS, HfImage, HfText, load_classifier
from fedpers.models.personal import PersonalModel, clean_name
from fedpers.pretrained import pretrained_name
from fedpers.seeding import seeded

if TYPE_CHECKING:
    from fedpers.data import FederatedData


def export_model(
    model: PersonalModel,
    folder: Path,
    config: Config,
    data: FederatedData,
    manifest: Mapping[str, Any],
) -> None:
    """Write a client's model, all at once or not at all; ``manifest.json`` says how to load it.

    A language model becomes a PEFT adapter of the model that is named. A classifier of transformers
    (``hf:``) becomes a PEFT adapter and a classifier under the names of transformers; the
    standardisation of features is folded into the classifier. ``base/`` holds the frozen model
    where it is not the one named: trained on public data, or with layers that its file does not
    have. With ``lora: null`` the folder is a model of transformers as a whole.

    Other backbones, and methods that add slots to the model, get the folder of ``save_adapter`` and
    the frozen model beside it, in ``base.safetensors``.

    Raises:
        ConfigError: a classifier of transformers without the bias that this one has.
    """
    added = added_slots(model)
    if isinstance(model.trunk, HfText | HfImage) and not added:
        _export_hf(model, model.trunk, folder, config, data, manifest)
        return
    if not model.own_head and not added:
        base = pretrained_name(config.model.name)
        needs: dict[str, Any] = {"class": "AutoModelForCausalLM", "base": base}
        needs["preprocessing"] = base
        needs["load"] = f"PeftModel.from_pretrained({needs['class']}.from_pretrained(base), .)"
        save_adapter(model, folder, config, {**manifest, "needs": needs})
        return
    needs = {
        "package": f"fedpers=={fedpers.__version__}",
        "seed": config.seed,
        "model": asdict(config.model),
        "signature": asdict(data.signature),
        "inputs": asdict(data.scaling_of(str(manifest.get("client")))),
        "task": asdict(data.task.settings()),
        "strategy": config.strategy.name,
    }
    whole = config.model.lora is None
    if not whole:
        needs["base"] = "base.safetensors"
        needs["load"] = "base.load_state_dict(base.safetensors); PeftModel.from_pretrained(base, .)"
    if model.whitener is not None:
        needs["whitening"] = "whitening.safetensors"
    with whole_folder(folder, {**manifest, "needs": needs}) as new:
        write_adapter(model, new, config)
        if model.whitener is not None and model.centre is not None:
            whitening = {"centre": model.centre, "whitener": model.whitener}
            save_tensors(whitening, new / "whitening.safetensors")
        if not whole:
            save_tensors(base_model(config, data).state_dict(), new / "base.safetensors")


def _export_hf(
    model: PersonalModel,
    trunk: HfText | HfImage,
    folder: Path,
    config: Config,
    data: FederatedData,
    manifest: Mapping[str, Any],
) -> None:
    published, head = _published(config, data), folded_head(model)
    if published.get_submodule(trunk.head_path).bias is None:
        if bool(head.bias.any()):
            takes = "a classifier with a bias, as transformers would leave this client's out"
            raise ConfigError("model.name", config.model.name, takes)
        head.register_parameter("bias", None)
    whole = config.model.lora is None
    base = trunk if whole else base_model(config, data).get_submodule("trunk")
    frozen = _with_head(base, trunk.head_path, head)
    name = pretrained_name(config.model.name)
    own = whole or not _same(frozen, published, trunk.head_path)
    task, kind = data.task, data.signature.kind
    frozen.config.id2label = dict(enumerate(task.names))
    frozen.config.label2id = {name: number for number, name in enumerate(task.names)}
    needs: dict[str, Any] = {
        "class": CLASSIFIERS[kind],
        "num_labels": task.outputs,
        "id2label": frozen.config.id2label,
        "base": ("." if whole else "base") if own else name,
        "preprocessing": name,
    }
    needs["load"] = f"{needs['class']}.from_pretrained(base, num_labels={task.outputs})"
    if not whole:
        needs["load"] = f"PeftModel.from_pretrained({needs['load']}, .)"
    if kind == "text":
        needs["max_tokens"] = config.data.max_tokens
    with whole_folder(folder, {**manifest, "needs": needs}) as new:
        if own:
            frozen.save_pretrained(new if whole else new / "base")
        if not whole:
            _save_peft(model, frozen, trunk.head_path, new, config, needs["base"])


def folded_head(model: PersonalModel) -> nn.Linear:
    """The head as one layer on the trunk's own features, W (f - m) / s + b = (W / s) f + b', to
    scores in the unit of what is predicted."""
    head = copy.deepcopy(model.head)
    if model.mean is not None and model.scale is not None:
        weight = model.head.weight.detach().double() / model.scale.double()
        bias = model.head.bias.detach().double() - weight @ model.mean.double()
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    model.task.unscaled(head)
    return head


def _published(config: Config, data: FederatedData) -> Any:
    """The model as anybody gets it; what its file does not have is drawn differently here."""
    with seeded(config.seed, "export"):
        return load_classifier(config.model.name, data.signature.kind, data.task)


def _with_head(trunk: Any, path: str, head: nn.Linear) -> Any:
    """A copy of the model of transformers in a trunk, with a head where its own was."""
    model = copy.deepcopy(trunk.model)
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, head)
    return model


def _same(model: nn.Module, other: nn.Module, head_path: str) -> bool:
    """Whether two models of transformers have the same tensors, their heads aside."""
    theirs = other.state_dict()
    return all(
        torch.equal(tensor, theirs[name])
        for name, tensor in model.state_dict().items()
        if not name.startswith(f"{head_path}.")
    )


def _save_peft(
    model: PersonalModel, frozen: nn.Module, head_path: str, folder: Path, config: Config, base: str
) -> None:
    from peft import LoraConfig

    lora = config.model.lora
    assert lora is not None
    factors = {
        clean_name(path).removeprefix(TRUNK): tensor.detach().cpu().contiguous()
        for path, tensor in model.trunk.named_parameters(prefix="trunk")
        if ".lora_" in path
    }
    tensors = {f"base_model.model.{name}.weight": tensor for name, tensor in factors.items()}
    # PEFT replaces every module whose path ends so (DistilBERT's pre_classifier): all are saved.
    for path, layer in frozen.named_modules():
        if path.endswith(head_path):
            for name, tensor in layer.state_dict().items():
                tensors[f"base_model.model.{path}.{name}"] = tensor
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=sorted({name.rpartition(".lora_")[0] for name in factors}),
        modules_to_save=[head_path],
        base_model_name_or_path=base,
        inference_mode=True,
    )
    save_tensors(tensors, folder / "adapter_model.safetensors")
    settings.save_pretrained(str(folder))
