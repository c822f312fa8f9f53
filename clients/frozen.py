"""What a method holds, so that nothing in it can change."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any


def read_only(value: Any) -> Any:
    """Lists, dicts and sets as what cannot be changed, all the way down; anything else as it is."""
    if isinstance(value, dict):
        return MappingProxyType({key: read_only(item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return tuple(read_only(item) for item in value)
    return frozenset(value) if isinstance(value, set) else value
