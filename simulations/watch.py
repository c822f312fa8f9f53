"""Follow a run by the files that it writes: ``fedpers watch``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpers.config import Config, load_config
from fedpers.evaluation.counts import MODES
from fedpers.evaluation.run_files import number, read_lines
from simulations.runs import SETTINGS, find_run

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
        clients: the results of the last evaluation, by client; see ``clients.jsonl``.
        evaluated: the round of that evaluation, None before the first.
        idle: seconds since the run last wrote a line.
        ended: whether its report is there.
    """

    run: str
    config: Config
    rounds: Mapping[int, Mapping[str, Any]]
    clients: Mapping[str, Mapping[str, Any]]
    evaluated: int | None
    idle: float
    ended: bool

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

    def accuracies(self, mode: str) -> list[float]:
        """Each client's test accuracy in 0..1; a client without test examples is left out."""
        tests = [client["test"] for client in self.clients.values()]
        counts = [(number(test, "correct", mode), number(test, "n")) for test in tests]
        return [right / n for right, n in counts if n and right is not None]


def read_state(run: Path) -> State:
    """How the run in the folder ``run`` stands now."""
    numbered = [line for line in read_lines(run / "rounds.jsonl") if _numbered(line)]
    rounds = {line["round"]: line for line in numbered}
    scored = (line for line in read_lines(run / "clients.jsonl") if _numbered(line))
    results = [line for line in scored if isinstance(line.get("test"), Mapping)]
    evaluated = max((line["round"] for line in results), default=None)
    files = [run / name for name in (SETTINGS, "rounds.jsonl", "clients.jsonl")]
    written = max(file.stat().st_mtime for file in files if file.exists())
    return State(
        run=run.name,
        config=load_config(run / SETTINGS),
        rounds=rounds,
        clients={str(line.get("client")): line for line in results if line["round"] == evaluated},
        evaluated=evaluated,
        idle=max(time.time() - written, 0.0),
        ended=(run / "report.json").exists(),
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
        line.append(f"epsilon {epsilon:.2f} of {state.config.privacy.epsilon:g}")
    if state.ended:
        line.append("ended")
    else:
        line += [] if state.left is None else [f"about {duration(state.left)} left"]
        line.append(f"last line {duration(state.idle)} ago")
    shown: list[Any] = [Text(state.run, style="bold"), Text("  ".join(line))]
    if state.evaluated is not None:
        shown.append(_quantiles(state))
    return Group(*shown)


def _numbered(line: Mapping[str, Any]) -> bool:
    return type(line.get("round")) is int


def _quantiles(state: State) -> Table:
    table = Table(title=f"test accuracy over clients in %, round {state.evaluated}")
    table.add_column("model")
    for name in ("clients", "mean", *QUANTILES):
        table.add_column(name, justify="right")
    for mode in MODES:
        accuracies = state.accuracies(mode)
        if accuracies:
            values = [np.mean(accuracies), *np.quantile(accuracies, list(QUANTILES.values()))]
            table.add_row(mode, str(len(accuracies)), *(f"{100 * v:.1f}" for v in values))
    return table


def duration(seconds: float) -> str:
    """Seconds in words: "12 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
