"""Compare methods on the same splits and seeds: ``fedpers compare``.

Every run leaves its folder; a run whose report is there is not repeated, so that a comparison that
was stopped goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedpers.config import load_config
from fedpers.errors import ConfigError, FedpersError
from fedpers.files import lock
from simulations.checks import absolute_paths, check

CONFIDENCE = 0.95
ERROR = "error.txt"

COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "weighted": lambda r: _of(r["accuracy"]["personal"], "weighted"),
    "mean": lambda r: _of(r["accuracy"]["personal"], "mean"),
    "worst decile": lambda r: _of(r["accuracy"]["personal"], "worst_decile"),
    "global (w)": lambda r: _of(r["accuracy"]["global"], "weighted"),
    "gated (w)": lambda r: _of(r["accuracy"]["gated"], "weighted"),
    "breakage": lambda r: r["breakage_rate"],
    "harmed": lambda r: r["harmed_share"],
    "harmed, gated": lambda r: r["gated"]["harmed_share"],
    "macro-F1": lambda r: _of(r.get("macro_f1"), "personal"),
    "AUC": lambda r: _of(r.get("auc"), "personal"),
    "outside": lambda r: r["out_of_client"]["personal"],
}
"""What the table shows of a report; fractions, printed in percent."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a method under some settings with one seed."""

    method: str
    setting: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        text = "-".join(filter(None, [self.method, self.setting, f"s{self.seed}"]))
        return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in text)


def cells(
    strategies: Sequence[str], seeds: int, settings: Sequence[str], first_seed: int = 0
) -> list[Cell]:
    """All runs of a comparison.

    Args:
        strategies: names, each with parameters of its own if need be: ``ditto:mu=0.1``.
        seeds: how many seeds, from ``first_seed`` up.
        settings: ``key=v1,v2``; every combination is run.

    Raises:
        ConfigError: a setting without a value.
    """
    choices = []
    for item in settings:
        key, found, values = item.partition("=")
        if not found or not key or not values:
            raise ConfigError("--set", item, "key=value, or key=value,value")
        choices.append([f"{key}={value}" for value in values.split(",")])
    made = []
    for chosen, name, seed in product(product(*choices), strategies, range(seeds)):
        method, *params = name.split(":")
        own = [f"strategy.params.{param}" for param in params]
        given = (f"strategy.name={method}", *own, *chosen, f"seed={first_seed + seed}")
        made.append(Cell(name, " ".join(chosen), first_seed + seed, given))
    return made


def compare(
    config: Path,
    plan: Sequence[Cell],
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    jobs: int = 1,
) -> Iterator[tuple[Cell, dict[str, Any] | None]]:
    """Run what has not been run yet; yields each cell with its report as it is there.

    A run that fails is yielded with None, its reason in ``error.txt`` in its folder, and repeated
    the next time, even if it left a report.

    Args:
        config: the experiment, a YAML file.
        plan: what to run.
        folder: where the runs' folders are.
        overrides: settings for all runs.
        jobs: how many processes run side by side, each on one core.

    Raises:
        FedpersError: a mistake in the settings of any run, or another comparison at work in the
            folder, before the first one starts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock(folder / ".lock")
    except BlockingIOError:
        takes = "a folder that no other comparison is at work in"
        raise ConfigError("--out", str(folder), takes, "wait for its end") from None
    with held:
        yield from _compared(config, plan, folder, overrides, jobs)


def _compared(
    config: Path, plan: Sequence[Cell], folder: Path, overrides: Sequence[str], jobs: int
) -> Iterator[tuple[Cell, dict[str, Any] | None]]:
    todo = []
    for cell in plan:
        report = _finished(folder / cell.name)
        if report is None:
            todo.append(cell)
        else:
            yield cell, report
    texts = {}
    for cell in todo:
        settings = absolute_paths(load_config(config, [*overrides, *cell.overrides]))
        if cell.seed == todo[0].seed:  # the checks load the data: once for each method is enough
            check(settings)
        texts[cell] = settings.to_json()
    # Spawned, as a forked child of a process that used torch's threads may hang.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        started = {pool.submit(_run, texts[cell], folder / cell.name): cell for cell in todo}
        for future in as_completed(started):
            yield started[future], future.result()
    except BaseException:
        # Stopped: what is running is worth nothing without its end, and will be repeated.
        for worker in list(pool._processes.values()):
            worker.kill()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _finished(folder: Path) -> dict[str, Any] | None:
    """The report of a run that is over and did not fail."""
    report = folder / "report.json"
    if not report.exists() or (folder / ERROR).exists():
        return None
    try:
        return dict(json.loads(report.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # damaged: it is run again
        return None


def _run(settings: str, folder: Path) -> dict[str, Any] | None:
    import contextlib
    import io

    from fedpers.config import config_from_json
    from simulations.serial import run_serial

    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run_serial(config_from_json(settings), folder)
    except Exception as error:  # a method that breaks down costs itself, not the comparison
        mistake = isinstance(error, FedpersError)
        text = f"{error}\n" if mistake else traceback.format_exc()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(text, encoding="utf-8")
        return None
    return dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))


def table(reports: Mapping[Cell, Mapping[str, Any]], against: str | None = None) -> str:
    """A Markdown table: a row a method and setting, mean +- standard deviation over seeds, in %.

    Args:
        against: a method; adds the paired difference of the mean accuracy to it, over the seeds
            that both have, with its 95% confidence interval (Student's t).
    """
    names = list(COLUMNS)
    if against is not None:
        names.append(f"mean, less {against}")
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    rows = rows_of(reports)
    for (method, setting), by_seed in rows.items():
        cells = shown(by_seed)
        if against is not None:
            cells.append(_difference(by_seed, rows.get((against, setting), {})))
        lines.append(f"| {' '.join(filter(None, [method, setting]))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_of(
    reports: Mapping[Cell, Mapping[str, Any]],
) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """The reports by method and setting, then by seed."""
    rows: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for cell, report in reports.items():
        rows.setdefault((cell.method, cell.setting), {})[cell.seed] = report
    return rows


def shown(by_seed: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The figures of a row, as text: mean and standard deviation over seeds, in percent."""
    return [_spread([read(r) for r in by_seed.values()]) for read in COLUMNS.values()]


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The mean of paired differences and the half width of its 95% interval (Student's t)."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return mean(differences), float("nan")
    width = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(differences) / sqrt(n)
    return mean(differences), width


def _difference(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> str:
    read = COLUMNS["mean"]
    pairs = [(read(ours[seed]), read(theirs[seed])) for seed in ours if seed in theirs]
    both = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return ""
    centre, width = paired_interval(both)
    return f"{centre:+.1f}" if width != width else f"{centre:+.1f} ± {width:.1f}"


def _spread(values: Sequence[float | None]) -> str:
    there = [100 * value for value in values if value is not None]
    if not there:
        return "-"
    spread = f" ± {stdev(there):.1f}" if len(there) > 1 else ""
    return f"{mean(there):.1f}{spread}"


def _of(summary: Mapping[str, float] | None, name: str) -> float | None:
    return None if summary is None else summary.get(name)
