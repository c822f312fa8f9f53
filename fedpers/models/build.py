"""From settings and public data to a model, the same in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedpers.config import Config, Model
from fedpers.errors import ConfigError
from fedpers.models.backbones import BACKBONES, Backbone
from fedpers.models.base_state import write_base
from fedpers.models.causal import load_causal
from fedpers.models.hf import load_hf
from fedpers.models.lora import add_lora, last_blocks
from fedpers.models.personal import PersonalModel, Scaler, find_batch_norm
from fedpers.models.pretrain import check_public, feature_scaler, pretrain
from fedpers.models.sentence import load_sentence
from fedpers.models.whitening import prepare_whitening
from fedpers.parts import Parts
from fedpers.pretrained import PREFIX, SENTENCE
from fedpers.seeding import seeded

if TYPE_CHECKING:
    from fedpers.data import FederatedData, Signature
    from fedpers.tasks.base import Task


OF_TRANSFORMERS = ("text", "image", "language")
"""The kinds of data that a model of transformers reads."""


def build_model(config: Config, data: FederatedData, base: Parts | None = None) -> PersonalModel:
    """The model of a run, on the CPU and in evaluation mode.

    Its bits depend on ``config.seed``, ``config.model`` and ``data.public`` only; the global
    random state is left as it was. With LoRA the trunk is frozen, and adapters and head start
    at zero, so that first scores are zero; without, everything is trainable and starts
    as PyTorch initialises it, after pre-training if that is asked for.

    Args:
        base: its tensors, where there are no public data to make them from.

    Raises:
        ConfigError: a backbone that does not exist or does not fit the data or has BatchNorm;
            a LoRA target that no layer is called; too little public data.
        ClientError: a base of another model.
    """
    if base is None:
        return _build(config, data, adapters=True)
    model = _build(config, data, adapters=True, public=False)
    write_base(model, base)
    return model


def remark(config: Config) -> str:
    """What a user should know of the model before it is trained, in one line, or ""."""
    settings = config.model
    pretrained = settings.name.startswith((PREFIX, SENTENCE)) or settings.pretrain.task != "none"
    if settings.lora is None or pretrained:
        return ""
    cure = "set model.lora=null to train all of it, or model.pretrain.task"
    return f"model: {settings.name} stays as it was drawn but for its adapters; {cure}"


def base_model(config: Config, data: FederatedData) -> nn.Module:
    """The model without LoRA adapters, for ``PeftModel.from_pretrained(base, folder)``.

    Raises:
        ConfigError: as ``build_model``.
    """
    return _build(config, data, adapters=False)


def _build(
    config: Config, data: FederatedData, *, adapters: bool, public: bool = True
) -> PersonalModel:
    settings, lora = config.model, config.model.lora
    if public:
        check_public(config, data)
    with seeded(config.seed, "model", "trunk"):
        trunk = _trunk(settings, data.signature, data.task)
    trunk.eval()
    with seeded(config.seed, "model", "head"):
        head = data.task.head(trunk.feature_dim)
    if head is None:
        return _with_own_head(config, trunk, data.task, adapters=adapters)
    if settings.head is not None:
        raise ConfigError("model.head", settings.head, "null where the task brings a head")
    scaler = None
    if public:
        pretrain(trunk, settings.pretrain, data.public, config.seed)
    if settings.standardise:
        width = torch.ones(trunk.feature_dim)
        scaler = feature_scaler(trunk, data.public.x) if public else Scaler(0 * width, width)
    if lora is None:
        model = PersonalModel(trunk, head, scaler=scaler, task=data.task)
        prepare_whitening(model, settings.whiten, data, public=public)
        return model
    trunk.requires_grad_(False)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if adapters:
        add_lora(trunk, lora, config.seed)
    private = lora.share == "a-only"
    model = PersonalModel(trunk, head, scaler=scaler, private_b=private, task=data.task)
    prepare_whitening(model, settings.whiten, data, public=public)
    return model


def _with_own_head(config: Config, trunk: Backbone, task: Task, *, adapters: bool) -> PersonalModel:
    """A model that reads its own states out; only its adapters are trained."""
    settings, lora = config.model, config.model.lora
    if lora is None:
        takes = f"settings (rank, alpha, share, ...): of {settings.name} adapters alone are trained"
        raise ConfigError("model.lora", None, takes)
    if settings.standardise:
        raise ConfigError("model.standardise", True, "false where a model has its own head")
    for key, got in (("pretrain.task", settings.pretrain.task), ("whiten", settings.whiten)):
        if got != "none":
            raise ConfigError(f"model.{key}", got, "none where a model has its own head")
    trunk.requires_grad_(False)
    upper = _upper(settings, trunk)
    if adapters:
        add_lora(trunk, lora, config.seed)
    model = PersonalModel(trunk, None, upper=upper, private_b=lora.share == "a-only", task=task)
    if adapters and not all(model.slots.values()):
        takes = "adapters of fewer blocks than model.lora.layers, which leave some for the body"
        raise ConfigError("model.head", settings.head, takes)
    return model


def _upper(settings: Model, trunk: Backbone) -> tuple[str, ...]:
    """The beginnings of the paths of the head's tensors."""
    if settings.head in (None, "none"):
        return ()
    word, _, count = str(settings.head).partition("-")
    if word != "last" or not count.isdecimal():
        raise ConfigError("model.head", settings.head, "last-K, for the last K blocks, or none")
    return last_blocks(trunk, int(count), "model.head")


def _trunk(settings: Model, signature: Signature, task: Task) -> Backbone:
    name = settings.name
    names = BACKBONES.names()
    fitting = [known for known in names if signature.kind in BACKBONES.get(known).kinds]
    fitting += ["hf:<name or folder>"] * (signature.kind in OF_TRANSFORMERS)
    fitting += ["sentence:<name or folder>"] * (signature.kind == "text")
    if name.startswith(PREFIX):
        kinds: tuple[str, ...] = OF_TRANSFORMERS
    elif name.startswith(SENTENCE):
        kinds = ("text",)
    elif ":" in name or name in names:
        backbone = BACKBONES.get(name)
        if not (isinstance(backbone, type) and issubclass(backbone, Backbone)):
            raise ConfigError("model.name", name, "a subclass of fedpers.models.Backbone")
        kinds = backbone.kinds
    else:
        prefixed = "hf:<name or folder>, sentence:<name or folder>"
        takes = f"one of {', '.join(names)}, {prefixed}, or package.module:Class"
        raise ConfigError("model.name", name, takes)
    if signature.kind not in kinds:
        raise ConfigError("model.name", name, f"{' or '.join(fitting)} for {signature.kind} data")
    if name.startswith(PREFIX) and signature.kind == "language":
        trunk: Backbone = load_causal(name, settings.dtype, signature.shape[-1])
    elif name.startswith(PREFIX):
        trunk = load_hf(name, signature.kind, task)
    elif name.startswith(SENTENCE):
        trunk = load_sentence(name)
    else:
        trunk = backbone(signature.shape)
    found = find_batch_norm(trunk)
    if found is not None:
        takes = f"a model without batch statistics (found {found})"
        raise ConfigError("model.name", name, takes, "use GroupNorm or LayerNorm")
    return trunk
