"""What a comparison reads of a finished run beside its report: each client's figure, and steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from clients.node.host import STEPS, TUNED
from clients.node.store import ClientStore
from fedpers.evaluation import ClientResult
from fedpers.evaluation.shown import task_of

BY_CLIENT = "by_client"


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a run's folder, with ``by_client``, the headline of each client's personal
    model, and ``steps`` of gradient descent that a client took in the median, those before a
    prediction included; empty and None where the folder does not say.

    Raises:
        OSError, ValueError, TypeError: the report cannot be read.
    """
    report = dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    return report | {BY_CLIENT: by_client(folder, report), STEPS: steps(folder)}


def by_client(folder: Path, report: Mapping[str, Any]) -> dict[str, float]:
    """The headline of each client's personal model on test, in the round that the report takes."""
    task, log = task_of(report), folder / "clients.jsonl"
    _, metric = task.headline()
    found: dict[str, float] = {}
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        line = json.loads(text)
        if line.get("round") != report.get("selected_round") or "test" not in line:
            continue
        fields = {name: line[name] for name in ("client", "train", "val", "test", "outside")}
        result = ClientResult.from_json(fields, task.tally_type)
        value = metric.of([result.test], "personal") if "personal" in result.test.modes else None
        if value is not None:
            found[result.client] = value
    return found


def steps(folder: Path) -> float | None:
    """The median over clients, of training and of what comes before a prediction."""
    stores = [path.parent for path in folder.glob(f"state/*/{STEPS}.json")]
    known = [ClientStore(path.parent, path.name).load_json(STEPS) for path in stores]
    found = [sum(kept.get(STEPS, {}).values()) + kept.get(TUNED, 0) for kept in known if kept]
    return float(median(found)) if found else None
