"""Which settings name files and folders."""

from __future__ import annotations

from typing import Any

from fedpers.config import Config


def paths_of(config: Config) -> list[tuple[Any, str]]:
    """Each setting that names a file or a folder: whose it is, and its name."""
    return [
        (config, "output"),
        (config, "state"),
        (config, "permit"),
        (config, "federation"),
        (config.data, "path"),
        (config.data.partition, "path"),
        (config.encryption, "keys"),
    ]
