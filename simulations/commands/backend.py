"""What runs are made on, as an option of commands."""

from __future__ import annotations

from enum import StrEnum


class Backend(StrEnum):
    """Where the clients run."""

    RAY = "ray"
    SERIAL = "serial"
