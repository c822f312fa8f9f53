"""Figures as text, in the unit of their metric."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10
from typing import Any

from fedpers.config import TaskSettings
from fedpers.errors import ConfigError
from fedpers.tasks.base import Metric, Task, task_named

ABSENT = "–"
SHOWN = 8  # names of classes


def task_of(report: Mapping[str, Any]) -> type[Task]:
    """The task of a report; of one that does not say, classification.

    Raises:
        ConfigError: a task that is not installed here.
    """
    given = report.get("task")
    name = given.get("name") if isinstance(given, Mapping) else None
    if name is None:
        return task_named(TaskSettings())[0]
    if not isinstance(name, str):
        raise ConfigError("task.name", name, "the name of a task")
    return task_named(TaskSettings(name))[0]


def headline_of(report: Mapping[str, Any]) -> tuple[str, Metric, str]:
    """The name of a report's headline, the metric, and the unit of what is predicted."""
    given = report.get("task")
    unit = given.get("unit") if isinstance(given, Mapping) else None
    return *task_of(report).headline(), str(unit or "")


def learned(report: Mapping[str, Any]) -> str:
    """What a report's run learned, in the data's own names; "" for a report without them."""
    given = report.get("task")
    names = given.get("names") if isinstance(given, Mapping) else None
    if not isinstance(names, list) or not names:
        return ""
    if len(names) == 1:
        unit = headline_of(report)[2]
        return f"{names[0]} in {unit}" if unit else str(names[0])
    text, called = f"{len(names)} classes", [str(name) for name in names]
    if called == [str(number) for number in range(len(names))]:
        return text
    return f"{text}: {', '.join(called[:SHOWN])}{', ...' if len(called) > SHOWN else ''}"


def value_text(metric: Metric, value: float | None, beside: float | None = None) -> str:
    """A value without its unit: a share in percent, else three digits that matter.

    Args:
        beside: a value that it is told with, to as many decimals.
    """
    if value is None:
        return ABSENT
    return f"{100 * value:.1f}" if metric.unit == "share" else _three_digits(value, beside)


def gain_text(metric: Metric, gain: float | None, beside: float | None = None) -> str:
    """How much better, with its sign; of shares in percentage points.

    Args:
        beside: a value that it is told with, to as many decimals.
    """
    if gain is None:
        return ABSENT
    text = f"{100 * gain:.1f}" if metric.unit == "share" else _three_digits(gain, beside)
    if float(text) == 0:
        return text.lstrip("-")
    return f"+{text}" if gain > 0 else text.replace("-", "−")


def unit_of(metric: Metric, unit: str) -> str:
    """What stands behind a value: the percent sign, the target's unit, or nothing."""
    return {"share": "%", "target": unit}.get(metric.unit, "")


def with_unit(metric: Metric, value: float | None, unit: str) -> str:
    """A value and its unit."""
    return f"{value_text(metric, value)} {unit_of(metric, unit)}".rstrip()


def in_unit(metric: Metric, unit: str) -> str:
    """ " in %", for a title; nothing without a unit."""
    of = unit_of(metric, unit)
    return f" in {of}" if of else ""


def _three_digits(value: float, beside: float | None = None) -> str:
    size = abs(float(f"{beside or value:.3g}"))  # 9.996 has the digits of 10.0
    return f"{value:.{min(6, max(0, 2 - floor(log10(size))))}f}" if size else "0"
