"""What transformers have of a model: found on this machine, else on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedpers.errors import ConfigError, line_of
from fedpers.packaged import packaged_folder, quiet

T = TypeVar("T")

PREFIX, SENTENCE = "hf:", "sentence:"


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
            with quiet():
                return load(name, local_files_only)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = line_of(error)[:200]
    raise ConfigError("model.name", model_name, f"{what} ({reason})")


def pretrained_name(model_name: str) -> str:
    """The name or folder that transformers take, from ``model.name``.

    Raises:
        ConfigError: a packaged model whose package is not installed.
    """
    name = os.path.expanduser(model_name.removeprefix(PREFIX).removeprefix(SENTENCE))
    if Path(name).is_dir():
        return name
    return packaged_folder(name, model_name) or name
