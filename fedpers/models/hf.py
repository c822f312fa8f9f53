"""Any classifier of transformers as a trunk: ``model.name=hf:<name or folder>``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from fedpers.errors import ConfigError
from fedpers.models.backbones import Backbone
from fedpers.models.lora import linear_layers
from fedpers.pretrained import load_pretrained, pretrained_name

if TYPE_CHECKING:
    from fedpers.tasks.base import Task

CLASSIFIERS = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
}
# The query and value layers of attention, as the families of models call them.
QUERY_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("query_key_value",),
    ("Wqkv",),
    ("qkv",),
    ("in_proj",),
    ("c_attn",),
)


class HfText(Backbone):
    """A text classifier without its head; x [batch, 2, L] holds token ids and attention mask.

    Args:
        model: a model of transformers, its last layer replaced by the identity.
        feature_dim: the width of that layer's input.
        head_path: where in ``model`` the layer was.
    """

    kinds = ("text",)

    def __init__(self, model: nn.Module, feature_dim: int, head_path: str) -> None:
        super().__init__()
        self.model, self.feature_dim, self.head_path = model, feature_dim, head_path
        self.lora_target = query_value(model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [batch, feature_dim]."""
        outputs = self.model(input_ids=x[:, 0], attention_mask=x[:, 1])
        return outputs.logits  # type: ignore[no-any-return]


class HfImage(Backbone):
    """An image classifier without its head; x [batch, channels, height, width] in -1..1.

    Images are resized to the model's size, grey ones repeated to its channels, and normalised
    as the model's own preprocessor says; by mean and spread 0.5 (as they are) if it has none.
    """

    kinds = ("image",)
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self, model: nn.Module, feature_dim: int, head_path: str, pixels: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model, self.feature_dim, self.head_path = model, feature_dim, head_path
        self.lora_target = query_value(model)
        config: Any = model.config
        config = getattr(config, "vision_config", config)
        size = getattr(config, "image_size", None)
        self.size = (size, size) if isinstance(size, int) else size and tuple(size)
        self.channels = int(getattr(config, "num_channels", 3))
        normalise = bool(pixels.get("do_normalize", "image_mean" in pixels))
        for name in ("mean", "std"):
            values = pixels.get(f"image_{name}") if normalise else None
            values = torch.tensor(values or [0.5] * self.channels)
            self.register_buffer(f"pixel_{name}", values.view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [batch, feature_dim]."""
        if self.size and x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        if x.shape[1] == 1:
            x = x.expand(-1, self.channels, -1, -1)
        x = ((x + 1) / 2 - self.pixel_mean) / self.pixel_std
        return self.model(pixel_values=x).logits  # type: ignore[no-any-return]


def load_hf(model_name: str, kind: str, task: Task) -> Backbone:
    """The classifier ``hf:<name or folder>`` with its last layer taken off.

    Args:
        model_name: with the prefix ``hf:``.
        kind: of the data, text or image.
        task: what is learned.

    Raises:
        ConfigError: no such model, one of another kind than the data, or one whose classifier
            does not end in nn.Linear.
    """
    model = load_classifier(model_name, kind, task)
    feature_dim, head_path = _take_head_off(model, model_name, task.outputs)
    if kind == "text":
        return HfText(model, feature_dim, head_path)
    return HfImage(model, feature_dim, head_path, _preprocessor(model_name))


def load_classifier(model_name: str, kind: str, task: Task) -> Any:
    """The classifier ``hf:<name or folder>`` as transformers have it, in evaluation mode.

    What is on this machine is used; only else is the hub asked. Weights are read from
    safetensors, as float32. A model without a classifier of the right size gets a fresh one.

    Raises:
        ConfigError: no such model, or one of another kind than the data.
    """
    import transformers

    auto = getattr(transformers, CLASSIFIERS[kind])

    def load(name: str, local_files_only: bool) -> Any:
        return auto.from_pretrained(
            name,
            num_labels=task.outputs,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local_files_only,
        )

    what = f"a model for {kind} classification, stored as safetensors"
    model = load_pretrained(model_name, what, load)
    if kind == "text" and model.config.pad_token_id is None:
        # Decoders have none, but need one in a batch.
        model.config.pad_token_id = model.config.eos_token_id
    return model.eval()


def _take_head_off(model: nn.Module, model_name: str, outputs: int) -> tuple[int, str]:
    """Replace the last layer by the identity; the width of its input, and its path."""
    heads = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs
    ]
    if not heads:
        raise ConfigError("model.name", model_name, "a classifier whose last layer is nn.Linear")
    path, head = heads[-1]
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())
    return head.in_features, path


def query_value(model: nn.Module) -> tuple[str, ...]:
    """The names of the query and value layers of attention, if they have one of those."""
    kinds = linear_layers()
    layers = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, kinds)
    }
    return next((names for names in QUERY_VALUE if layers.issuperset(names)), ())


def _preprocessor(model_name: str) -> Mapping[str, Any]:
    """The model's ``preprocessor_config.json``; empty for a folder without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    folder = Path(pretrained_name(model_name))
    if folder.is_dir() and not (folder / "preprocessor_config.json").exists():
        return {}

    def load(name: str, local_files_only: bool) -> dict[str, Any]:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(
            name, local_files_only=local_files_only
        )
        return settings

    # An error rather than a guess: every process must scale images alike.
    return load_pretrained(model_name, "a model that comes with preprocessor_config.json", load)
