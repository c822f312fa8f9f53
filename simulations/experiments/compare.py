"""Compare methods on the same splits and seeds: ``fedpers compare``.

Every run leaves its folder; a run whose report is there is not repeated, so that a comparison that
was stopped goes on where it was.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from clients.node.host import STEPS
from fedpers.config import load_config
from fedpers.errors import ConfigError, FedpersError
from fedpers.evaluation.run_files import number
from fedpers.evaluation.shown import task_of, value_text
from fedpers.files import lock
from fedpers.tasks.base import Metric
from simulations.backends.checks import absolute_paths, check
from simulations.experiments.finished import BY_CLIENT, read_report

CONFIDENCE, SERIAL = 0.95, "serial"
ERROR = "error.txt"


@dataclass(frozen=True)
class Column:
    """A figure that the table shows of a report: how it is read, and the metric it is of."""

    read: Callable[[Mapping[str, Any]], float | None]
    metric: Metric


STEP = Metric(label="steps", of=lambda tallies, mode: None, unit="none")
SHARE = Metric(label="share", of=lambda tallies, mode: None)


def columns(reports: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
    """What the table shows of reports of one task, by title; ``mean`` is the headline's."""
    first = next(iter(reports), {})
    task = task_of(first)
    name, metric = task.headline()

    def of(mode: str, figure: str) -> Column:
        return Column(lambda r: number(r, name, mode, figure), metric)

    def share(*keys: str) -> Column:
        return Column(lambda r: number(r, *keys), SHARE)

    def other(key: str, own: Metric) -> Column:
        key = f"{key}_pooled" if own.pools else key
        return Column(lambda r: number(r, key, "personal"), own)

    return {
        "weighted": of("personal", "weighted"),
        "mean": of("personal", "mean"),
        "worst decile": of("personal", "worst_decile"),
        "global (w)": of("global", "weighted"),
        "gated (w)": of("gated", "weighted"),
        "breakage": share("breakage_rate"),
        "harmed": share("harmed_share"),
        "harmed, gated": share("gated", "harmed_share"),
        **{m.label: other(key, m) for key, m in task.metrics.items() if key != name and m.compared},
        "outside": Column(lambda r: number(r, "out_of_client", "personal"), metric),
        "steps": Column(lambda r: number(r, STEPS), STEP),
    }


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
    backend: str = SERIAL,
    exact: bool = False,
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
        backend: what each runs on, ``serial`` or ``ray``.
        exact: leave ``training.fold=off`` as it is. Else clients train at once where that is
            faster, and figures are those of one by one up to rounding.

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
        yield from _compared(config, plan, folder, overrides, jobs, backend, exact)


def _compared(
    config: Path,
    plan: Sequence[Cell],
    folder: Path,
    overrides: Sequence[str],
    jobs: int,
    backend: str,
    exact: bool,
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
        if settings.training.fold == "off" and not exact:
            settings.training.fold = "auto"
        if cell.seed == todo[0].seed:  # the checks load the data: once for each method is enough
            check(settings)
        texts[cell] = settings.to_json()
    # Spawned, as a forked child of a process that used torch's threads may hang.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        started = {
            pool.submit(_run, texts[cell], folder / cell.name, backend): cell for cell in todo
        }
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
    if not (folder / "report.json").exists() or (folder / ERROR).exists():
        return None
    try:
        return read_report(folder)
    except (OSError, ValueError, TypeError, KeyError):  # damaged: it is run again
        return None


def _run(settings: str, folder: Path, backend: str) -> dict[str, Any] | None:
    import contextlib
    import io

    from fedpers.config import config_from_json
    from simulations.backends.launcher import launch
    from simulations.backends.serial import run_serial

    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run = run_serial if backend == SERIAL else launch
            run(config_from_json(settings), folder)
    except Exception as error:  # a method that breaks down costs itself, not the comparison
        mistake = isinstance(error, FedpersError)
        text = f"{error}\n" if mistake else traceback.format_exc()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR).write_text(text, encoding="utf-8")
        return None
    return read_report(folder)


def table(reports: Mapping[Cell, Mapping[str, Any]], against: str | None = None) -> str:
    """A Markdown table: a row a method and setting, mean +- standard deviation over seeds; shares
    in %.

    Args:
        against: a method; adds the paired difference of the mean accuracy to it, over the seeds
            that both have, with its 95% confidence interval (Student's t); and the same over
            clients, whose differences are averaged over seeds first.
    """
    shown_columns = columns(reports.values())
    names = list(shown_columns)
    if against is not None:
        names += [f"mean, less {against}", "the same over clients"]
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    rows = rows_of(reports)
    for (method, setting), by_seed in rows.items():
        cells = shown(by_seed, shown_columns)
        if against is not None:
            cells.append(
                _difference(by_seed, rows.get((against, setting), {}), shown_columns["mean"])
            )
            cells.append(
                _over_clients(by_seed, rows.get((against, setting), {}), shown_columns["mean"])
            )
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


def shown(by_seed: Mapping[int, Mapping[str, Any]], columns: Mapping[str, Column]) -> list[str]:
    """The figures of a row, as text: mean and standard deviation over seeds; shares in percent."""
    return [_spread([c.read(r) for r in by_seed.values()], c.metric) for c in columns.values()]


def paired(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], column: Column
) -> list[float]:
    """Our figure less theirs, for each seed that both have."""
    pairs = [
        (column.read(ours[seed]), column.read(theirs[seed])) for seed in ours if seed in theirs
    ]
    return [a - b for a, b in pairs if a is not None and b is not None]


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The mean of paired differences and the half width of its 95% interval (Student's t)."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return mean(differences), float("nan")
    width = float(t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * stdev(differences) / sqrt(n)
    return mean(differences), width


def client_differences(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> list[float]:
    """Our figure less theirs for each client that both have, averaged over seeds."""
    found: dict[str, list[float]] = {}
    for seed in ours.keys() & theirs.keys():
        mine, other = ours[seed].get(BY_CLIENT, {}), theirs[seed].get(BY_CLIENT, {})
        for client in mine.keys() & other.keys():
            found.setdefault(client, []).append(mine[client] - other[client])
    return [mean(each) for each in found.values()]


def _over_clients(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], column: Column
) -> str:
    each = client_differences(ours, theirs)
    return _interval_text(each, ours, column) if len(each) > 1 else ""


def _difference(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], column: Column
) -> str:
    both = paired(ours, theirs, column)
    return _interval_text(both, ours, column) if both else ""


def _interval_text(
    both: Sequence[float], ours: Mapping[int, Mapping[str, Any]], column: Column
) -> str:
    centre, width = paired_interval(both)
    size = mean([value for r in ours.values() if (value := column.read(r)) is not None] or [0.0])
    text = value_text(column.metric, centre, size)
    text = text if text.startswith("-") else f"+{text}"
    return text if width != width else f"{text} ± {value_text(column.metric, width, size)}"


def _spread(values: Sequence[float | None], metric: Metric) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    centre = mean(there)
    spread = f" ± {value_text(metric, stdev(there), centre)}" if len(there) > 1 else ""
    return f"{value_text(metric, centre)}{spread}"
