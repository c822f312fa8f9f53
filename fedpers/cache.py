"""Tensors computed once a machine and kept by content hash, as safetensors files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedpers.errors import ConfigError

FORMAT = 1


def cache_folder() -> Path:
    """The folder of the environment variable FEDPERS_CACHE, or ``~/.cache/fedpers``."""
    return Path(os.environ.get("FEDPERS_CACHE") or "~/.cache/fedpers").expanduser()


def fingerprint(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over JSON-able settings and over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached(key: str, compute: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors kept under ``key`` (a ``fingerprint``), else ``compute()``, which is kept.

    Processes that ask at once wait for the first, so all get the same bits. A file that is
    damaged is computed again.

    Raises:
        ConfigError: the cache folder cannot be written.
    """
    from filelock import FileLock

    folder = cache_folder()
    path = folder / f"{key}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            tensors = _read(path, key)
            if tensors is None:
                tensors = {name: _own(tensor) for name, tensor in compute().items()}
                metadata = {"key": key, "sha256": fingerprint({}, tensors)}
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                save_file(tensors, temporary, metadata)
                os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        takes = f"a folder that can be written ({getattr(error, 'strerror', None) or error})"
        raise ConfigError("FEDPERS_CACHE", str(folder), takes) from None
    return tensors


def _own(tensor: torch.Tensor) -> torch.Tensor:
    # Cloned, since safetensors refuses tensors that share memory (tied weights).
    return tensor.detach().cpu().contiguous().clone()


def _read(path: Path, key: str) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    intact = metadata.get("key") == key and metadata.get("sha256") == fingerprint({}, tensors)
    return tensors if intact else None
