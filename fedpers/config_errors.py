"""Wrong settings as one line each: which key, what it got, what it takes."""

from __future__ import annotations

import logging
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpers.errors import ConfigError

log = logging.getLogger("fedpers")


RETIRED = {"privacy.accountant": "epsilon is exact"}
"""Settings of earlier versions, which runs' folders still hold, and why they do nothing."""


def drop_retired(layer: DictConfig) -> None:
    """Take retired settings out of what was given, and name them in the log."""
    for key, why in RETIRED.items():
        if OmegaConf.select(layer, key) is not None:
            section, name = key.rsplit(".", 1)
            del OmegaConf.select(layer, section)[name]
            log.warning("%s does nothing any more: %s; leave it out", key, why)


def check_ranges(node: Any, prefix: str = "") -> None:
    for f in fields(node):
        value, key = getattr(node, f.name), f"{prefix}.{f.name}" if prefix else f.name
        if is_dataclass(value):
            check_ranges(value, key)
        elif value is not None:
            choices = f.metadata.get("choices")
            if choices and value not in choices:
                raise ConfigError(key, value, f"one of {', '.join(choices)}")
            limits = f.metadata.get("limits", {})
            if isinstance(value, int | float) and not _within(value, **limits):
                raise ConfigError(key, value, _describe(f.type, node, f.name, limits))


def _within(
    value: float,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> bool:
    # Written so that NaN, which no comparison holds for, is outside every range.
    return (
        (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
        and value == value
    )


def _describe(kind: Any, node: Any, name: str, limits: Mapping[str, float | None]) -> str:
    hint = typing.get_type_hints(node if isinstance(node, type) else type(node)).get(name, kind)
    signs = {"above": ">", "least": ">=", "below": "<", "most": "<="}
    ranges = [f"{signs[key]} {limit:g}" for key, limit in limits.items() if limit is not None]
    return " ".join([_type_name(hint), " and ".join(ranges)]).strip()


def _type_name(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [_type_name(option) for option in typing.get_args(hint)]
        return " or ".join(option for option in options if option != "NoneType") + " or null"
    if typing.get_origin(hint) is list:
        return "a list"
    if is_dataclass(hint):
        return f"settings ({', '.join(f.name for f in fields(hint))})"
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def translate(
    error: OmegaConfBaseException, schema: type, given: Any, prefix: str = ""
) -> ConfigError:
    """OmegaConf's many-line complaint as one line that names key, value and what it takes."""
    key = str(getattr(error, "full_key", None) or "")
    if not key:  # a whole section was given something that is no mapping
        sections = typing.get_type_hints(schema)
        wrong = [n for n, v in given.items() if n in sections and not isinstance(v, Mapping)]
        key = next((name for name in wrong if is_dataclass(sections[name])), "")
    shown = f"{prefix}.{key}" if prefix else key
    value: Any = given
    for piece in key.split("."):
        value = value.get(piece) if isinstance(value, Mapping) else value
    kind: Any = schema
    parent: Any = None
    for piece in key.split("."):
        hints = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        if piece not in hints:
            known = ", ".join(hints)
            takes = f"one of the keys: {known}" if known else _type_name(kind)
            return ConfigError(shown, value, takes)
        parent, kind = kind, hints[piece]
        options = [option for option in typing.get_args(kind) if is_dataclass(option)]
        kind = options[0] if options else kind
    leaf = key.split(".")[-1]
    limits: Mapping[str, float | None] = next(
        (f.metadata.get("limits", {}) for f in fields(parent) if f.name == leaf), {}
    )
    return ConfigError(shown, value, _describe(kind, parent, leaf, limits))


def fold_of(given: str) -> str:
    """``training.fold`` as auto, off, which YAML reads as false, or a number."""
    text = {"false": "off"}.get(given.lower(), given.lower())
    if text in ("auto", "off") or (text.isdecimal() and int(text) >= 1):
        return text
    raise ConfigError("training.fold", given, "auto, off, or how many clients at once, >= 1")
