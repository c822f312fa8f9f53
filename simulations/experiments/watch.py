"""Follow a run by the files that it writes: ``fedpers watch``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpers.config import Config, load_config
from fedpers.evaluation.run_files import number, read_lines, read_object
from fedpers.evaluation.shown import in_unit, value_text
from fedpers.privacy.accounting import rounded_up
from fedpers.tasks.base import MODES, Metric, Tally, task_named
from simulations.experiments.runs import SETTINGS, find_run

STAGES = ("train", "combine", "evaluate")
EVERY = 0.5  # seconds between two looks
QUANTILES = {"worst": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "best": 1.0}


@dataclass(frozen=True)
class State:
    """How a run stands.

    Attributes:
        run: its id.
        config: its settings.
        rounds: the last line of each round, by round; see ``rounds.jsonl``.
        tests: the test tallies of the last evaluation, by client; see ``clients.jsonl``.
        evaluated: the round of that evaluation, None before the first.
        idle: seconds since the run last wrote a line.
        ended: whether its report is there.
        failed: why it has failed, as the report says; None if it has not.
    """

    run: str
    config: Config
    rounds: Mapping[int, Mapping[str, Any]]
    tests: Mapping[str, Tally]
    evaluated: int | None
    idle: float
    ended: bool
    failed: str | None

    @property
    def done(self) -> int:
        """The last round that is over; 0 before the first."""
        return max(self.rounds, default=0)

    @property
    def left(self) -> float | None:
        """About how many seconds the rounds that are left take, by the mean of those so far.

        The local baseline and the saving of models, which come last, are not in it.
        """
        if self.ended or not self.rounds:
            return None
        took = [number(line, "seconds", stage) for line in self.rounds.values() for stage in STAGES]
        mean = sum(seconds or 0.0 for seconds in took) / len(self.rounds)
        return mean * (self.config.rounds - self.done)

    @property
    def metric(self) -> Metric:
        """The headline of the run's task."""
        return task_named(self.config.task)[0].headline()[1]

    def values(self, mode: str) -> list[float]:
        """Each client's figure on its test split; a client without test examples is left out."""
        tests = [tally for tally in self.tests.values() if tally.n and mode in tally.modes]
        found = [self.metric.of([tally], mode) for tally in tests]
        return [value for value in found if value is not None]


def read_state(run: Path) -> State:
    """How the run in the folder ``run`` stands now."""
    numbered = [line for line in read_lines(run / "rounds.jsonl") if _numbered(line)]
    rounds = {line["round"]: line for line in numbered}
    scored = (line for line in read_lines(run / "clients.jsonl") if _numbered(line))
    results = [line for line in scored if isinstance(line.get("test"), Mapping)]
    evaluated = max((line["round"] for line in results), default=None)
    files = [run / name for name in (SETTINGS, "rounds.jsonl", "clients.jsonl")]
    written = max(file.stat().st_mtime for file in files if file.exists())
    config = load_config(run / SETTINGS)
    tally = task_named(config.task)[0].tally_type
    last = [line for line in results if line["round"] == evaluated]
    return State(
        run=run.name,
        config=config,
        rounds=rounds,
        tests=_readable(last, tally),
        evaluated=evaluated,
        idle=max(time.time() - written, 0.0),
        ended=(run / "report.json").exists(),
        failed=(read_object(run / "report.json") or {}).get("failed"),
    )


def watch(path: Path, *, once: bool = False) -> None:
    """Show how the run in ``path`` stands, anew twice a second, until its report is there.

    Args:
        path: the run's folder, or one that holds runs, for the newest of them.
        once: show it once.

    Raises:
        ConfigError: no run there.
    """
    run = find_run(path)
    # Wide enough for the table where the output goes into a file.
    console = Console(width=None if sys.stdout.isatty() else 100)
    if once:
        console.print(view(read_state(run)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            state = read_state(run)
            live.update(view(state), refresh=True)
            if state.ended:
                break
            time.sleep(EVERY)
    console.print(f"files: {run}", soft_wrap=True, highlight=False)


def view(state: State) -> Group:
    """What is shown of a run."""
    last = state.rounds.get(state.done, {})
    line = [f"round {state.done}/{state.config.rounds}"]
    if last:
        line.append(f"{last.get('answered')} clients")
        if failed := last.get("failed"):
            line.append(f"{len(failed)} failed")
    if (loss := number(last, "loss")) is not None:
        line.append(f"loss {loss:.3f}")
    if (epsilon := number(last, "epsilon")) is not None:
        line.append(f"epsilon {rounded_up(epsilon)} of {state.config.privacy.epsilon:g}")
    if state.ended:
        line.append(f"failed: {state.failed}" if state.failed else "ended")
    else:
        line += [] if state.left is None else [f"about {duration(state.left)} left"]
        line.append(f"last line {duration(state.idle)} ago")
    shown: list[Any] = [Text(state.run, style="bold"), Text("  ".join(line))]
    if state.evaluated is not None:
        shown.append(_quantiles(state))
    return Group(*shown)


def _readable(lines: Sequence[Mapping[str, Any]], tally: type[Tally]) -> dict[str, Tally]:
    """The test tallies by client, without lines that cannot be read."""
    found = {}
    for line in lines:
        with suppress(ValueError):
            found[str(line.get("client"))] = tally.from_json(line["test"])
    return found


def _numbered(line: Mapping[str, Any]) -> bool:
    return type(line.get("round")) is int


def _quantiles(state: State) -> Table:
    metric, unit = state.metric, str(state.config.task.params.get("unit", ""))
    title = f"test {metric.label} over clients{in_unit(metric, unit)}, round {state.evaluated}"
    table = Table(title=title)
    table.add_column("model")
    for name in ("clients", "mean", *QUANTILES):
        table.add_column(name, justify="right")
    for mode in MODES:
        found = state.values(mode)
        if found:
            # From worst to best, whichever way that is.
            shares = [q if metric.better == "higher" else 1 - q for q in QUANTILES.values()]
            values = [np.mean(found), *np.quantile(found, shares)]
            table.add_row(mode, str(len(found)), *(value_text(metric, float(v)) for v in values))
    return table


def duration(seconds: float) -> str:
    """Seconds in words: "12 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
