"""Reading what a run left in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedpers.errors import ConfigError
from fedpers.evaluation.results import ClientResult
from fedpers.evaluation.shown import headline_of, task_of
from fedpers.tasks.base import Metric, Task

MOST_PICTURE = 5_000_000
MOST_NUMBER = 1e300
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class RunRecord:
    """The files of one run.

    Attributes:
        path: its folder.
        report: ``report.json``.
        rounds: the lines of ``rounds.jsonl``, one a round, in order.
        results: from ``clients.jsonl``, the evaluation that the report takes.
        failures: how often each client failed.
        config: ``config.yaml``, and ``settings``, the same as text.
        audit: ``audit.json``, or None.
        picture: ``inversion.png``, or None.
    """

    path: Path
    report: Mapping[str, Any]
    rounds: list[Mapping[str, Any]]
    results: list[ClientResult]
    failures: dict[str, int]
    config: Mapping[str, Any]
    settings: str
    audit: Mapping[str, Any] | None
    picture: bytes | None

    @property
    def task(self) -> type[Task]:
        """The run's task."""
        return task_of(self.report)

    @property
    def metric(self) -> Metric:
        """The task's headline."""
        return self.task.headline()[1]

    @property
    def unit(self) -> str:
        """Of what is predicted, or ""."""
        return headline_of(self.report)[2]

    @property
    def names(self) -> list[str]:
        """Of the classes by number, as far as the report says them."""
        task = self.report.get("task")
        names = task.get("names") if isinstance(task, Mapping) else None
        return [str(name) for name in names] if isinstance(names, list) else []

    def score(self, mode: str, name: str) -> float | None:
        """The headline of a mode: its ``mean``, ``weighted``, ..."""
        return number(self.report, self.task.headline()[0], mode, name)

    def number(self, *keys: str) -> float | None:
        """A number of the report, or None where it has none."""
        return number(self.report, *keys)


def read_run(folder: Path, report: Mapping[str, Any] | None = None) -> RunRecord:
    """Read a run's folder; only ``report.json`` must be there, or else be given.

    Lines that cannot be read, as one that a crash cut off, are left out.

    Raises:
        ConfigError: ``folder`` is not the folder of a finished run.
    """
    report = report or read_object(folder / "report.json")
    task = task_of(report) if report else None
    by_mode = report.get(task.headline()[0]) if report and task else None
    if not report or not task or not isinstance(by_mode, Mapping) or "personal" not in by_mode:
        raise ConfigError("RUN", str(folder), "the folder of a finished run, with report.json")
    results: dict[str, ClientResult] = {}
    failures: dict[str, int] = {}
    for line in read_lines(folder / "clients.jsonl"):
        if "error" in line:
            client = str(line.get("client"))
            failures[client] = failures.get(client, 0) + 1
        elif line.get("round") == report.get("selected_round"):
            try:
                result = ClientResult.from_json(line, task.tally_type)
            except ValueError:
                continue
            results[result.client] = result  # of two lines the later holds
    rounds = {
        line["round"]: line
        for line in read_lines(folder / "rounds.jsonl")
        if type(line.get("round")) is int
    }
    settings = _text(folder / "config.yaml") or ""
    try:
        config = yaml.safe_load(settings)
    except yaml.YAMLError:
        config = {}
    return RunRecord(
        path=folder,
        report=report,
        rounds=[rounds[r] for r in sorted(rounds)],
        results=list(results.values()),
        failures=failures,
        config=config if isinstance(config, Mapping) else {},
        settings=settings,
        audit=read_object(folder / "audit.json"),
        picture=_picture(folder / "inversion.png"),
    )


def read_lines(path: Path, damaged: Callable[[int], None] | None = None) -> list[dict[str, Any]]:
    """The objects of a file that holds one a line; what cannot be read is left out.

    Args:
        damaged: told the number, from 1, of each line that cannot be read. A last one without its
            end is being written, or was cut off.
    """
    found, pieces = [], (_text(path) or "").split("\n")
    for number, line in enumerate(pieces, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif damaged is not None and number < len(pieces):
            damaged(number)
    return found


def number(data: Any, *keys: str) -> float | None:
    """The finite number at a path of keys, or None where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    if isinstance(data, bool) or not isinstance(data, int | float):
        return None
    return float(data) if abs(data) < MOST_NUMBER else None  # NaN is not below it


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none that can be read."""
    try:
        found = json.loads(_text(path) or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _picture(path: Path) -> bytes | None:
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST_PICTURE else b""
    except OSError:
        return None
    return data if data.startswith(PNG) else None
