"""Runs by their folders."""

from __future__ import annotations

from pathlib import Path

from fedpers.errors import ConfigError

SETTINGS = "config.yaml"


def find_run(path: Path) -> Path:
    """The run in the folder ``path``, or the newest one among the runs that the folder holds.

    Raises:
        ConfigError: no run there.
    """
    if (path / SETTINGS).is_file():
        return path.resolve()
    found = [file for file in path.glob(f"*/{SETTINGS}") if file.is_file()]
    if not found:
        takes = "the folder of a run, or one that holds runs"
        raise ConfigError("RUN", str(path), takes)
    # The settings are the first file that a run writes.
    return max(found, key=lambda file: file.stat().st_mtime_ns).parent.resolve()
