"""``compare.html``: several methods on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from fedpers.evaluation.charts import ticks
from fedpers.evaluation.page import esc, meanings, page, section, table
from fedpers.evaluation.shown import (
    gain_text,
    headline_of,
    in_unit,
    learned,
    task_of,
    value_text,
    with_unit,
)
from fedpers.tasks.base import Metric
from simulations.experiments.compare import Cell, columns, paired, paired_interval, rows_of, shown

WIDE, ROW, AXIS = 100.0, 30, 22  # of the chart: percent of the page, pixels a row, and below
TICKS = 4
MEANINGS = {
    "weighted": "over all test examples; mean: over clients, each the same",
    "worst decile": "the mean of the tenth of clients that do worst",
    "global (w)": "the model that all share, weighted by test examples",
    "gated (w)": "of both models the one that validation counts speak for, weighted",
    "breakage": "of what the global model has right, the share that the personal one loses",
    "harmed": "the share of clients that lose significantly by the personal model",
    "harmed, gated": "the same where the gate may choose the global model",
    "outside": "the personal model on other clients’ test examples",
}


def compare_html(
    title: str, reports: Mapping[Cell, Mapping[str, Any]], against: str | None, command: str
) -> str:
    """The whole document: a table, the headline's means with the seeds' own, paired differences.

    Args:
        title: what was compared.
        reports: the runs.
        against: the method that differences are taken to, if any.
        command: what printed it.
    """
    rows = rows_of(reports)
    names = _names(list(rows))
    known = columns(reports.values())
    first = next(iter(reports.values()))
    _, metric, unit = headline_of(first)
    seeds = len({cell.seed for cell in reports})
    values = {
        name: [v for r in found.values() if (v := known["mean"].read(r)) is not None]
        for name, found in zip(names, rows.values(), strict=True)
    }
    pieces = [
        f"<header><h1>{esc(title)}</h1><p class='soft'>{esc(_about(reports))}</p></header>",
        f"<p class='lead'>{esc(conclusion(reports))}</p>",
        section(
            f"{metric.label[0].upper()}{metric.label[1:]} of the personal models",
            f"<p>{esc(_how(metric, unit, seeds))}</p>",
            _dots({k: v for k, v in values.items() if v}, metric),
        ),
    ]
    if against is not None:
        size = mean([v for found in values.values() for v in found] or [0.0])
        differences = {
            name: found
            for (method, setting), name in zip(rows, names, strict=True)
            if method != against
            and (
                found := paired(
                    rows[method, setting], rows.get((against, setting), {}), known["mean"]
                )
            )
        }
        pieces.append(
            section(
                f"Less {against}, seed by seed",
                f"<p>{esc(_less(metric, unit, seeds))}</p>",
                _dots(differences, metric, size) if differences else "",
            )
        )
    lines = [[name, *shown(found, known)] for name, found in zip(names, rows.values(), strict=True)]
    shares = metric.unit == "share"
    title_of_all = f"All figures, {'in percent' if shares else 'shares in percent'}"
    words = {word: told for word, told in MEANINGS.items() if word in known}
    others = {m.label: m.meaning for m in task_of(first).metrics.values() if m.label in known}
    others = {label: meaning for label, meaning in others.items() if meaning}
    figures = table(["method", *known], lines)
    pieces.append(section(title_of_all, figures, meanings(words | others)))
    pieces.append(section("How it was made", f"<pre>{esc(command)}</pre>"))
    return page(title, "\n".join(pieces))


def _names(keys: Sequence[tuple[str, str]]) -> list[str]:
    """Method and settings of each row, without settings that are the same in all."""
    split = [setting.split(" ") for _, setting in keys]
    common = set.intersection(*map(set, split)) if split else set()
    told = [" ".join(s for s in settings if s not in common) for settings in split]
    return [f"{method} {text}".strip() for (method, _), text in zip(keys, told, strict=True)]


def _about(reports: Mapping[Cell, Mapping[str, Any]]) -> str:
    seeds = sorted({cell.seed for cell in reports})
    clients = sorted({report["clients"] for report in reports.values()})
    told = f"{len(reports)} runs · seeds {', '.join(map(str, seeds))} · {clients[-1]} clients"
    text = learned(next(iter(reports.values())))
    return f"{told} · {text}" if text else told


def conclusion(reports: Mapping[Cell, Mapping[str, Any]]) -> str:
    """Which method is best, and whether the seeds tell it from the next."""
    rows, known = rows_of(reports), columns(reports.values())
    _, metric, unit = headline_of(next(iter(reports.values())))
    found = {
        name: (by_seed, mean(values))
        for name, by_seed in zip(_names(list(rows)), rows.values(), strict=True)
        if (values := [v for r in by_seed.values() if (v := known["mean"].read(r)) is not None])
    }
    best = -1 if metric.better == "higher" else 1
    order = sorted(found, key=lambda name: best * found[name][1])
    if not order:
        return "No run has figures to compare."
    first, centre = order[0], found[order[0]][1]
    told = f"{first} has the best mean {metric.label}, {with_unit(metric, centre, unit)}"
    if len(order) == 1:
        return f"{told}; there is no other to compare it with."
    second = order[1]
    told += f", before {second} with {with_unit(metric, found[second][1], unit)}"
    both = paired(found[first][0], found[second][0], known["mean"])
    if len(both) < 2:
        return f"{told}. With one seed nobody can say whether that is chance: run more (--seeds 5)."
    _, width = paired_interval(both)
    if abs(mean(both)) > width:
        return f"{told}: more than chance between the {len(both)} seeds."
    return f"{told}: no more than chance between the {len(both)} seeds."


def _how(metric: Metric, unit: str, seeds: int) -> str:
    told = f"Mean over clients{in_unit(metric, unit)}, on their own test examples"
    told = told if metric.unit != "share" else "Mean over clients, on their own test examples"
    if seeds < 2:
        return f"{told}. Best first; one seed, so that there are no intervals."
    return f"{told}. Large dot: mean over seeds; small ones: the seeds. Best first."


def _less(metric: Metric, unit: str, seeds: int) -> str:
    what = (
        "Percentage points" if metric.unit == "share" else f"{metric.label}{in_unit(metric, unit)}"
    )
    better = "" if metric.better == "higher" else " Below zero is better."
    if seeds < 2:
        return f"{what}; one seed, so that there are no intervals.{better}"
    return (
        f"{what}, with the 95 % interval of the mean (Student’s t). Where it crosses zero, the "
        f"seeds do not tell the methods apart.{better}"
    )


def _dots(values: Mapping[str, Sequence[float]], metric: Metric, size: float | None = None) -> str:
    """A row a method: its values as small dots, their mean as a large one, with an interval where
    they are differences.

    Args:
        size: of the figures that differ, where the values are differences.
    """
    differences = size is not None
    best = -1 if metric.better == "higher" else 1
    ordered = sorted(values, key=lambda name: best * mean(values[name]))
    spans = {name: _span(values[name], differences) for name in ordered}
    ends = [end for name in ordered for end in (*spans[name], *values[name])]
    ends += [0.0] if differences else []
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.05 * ((high - low) or 0.1)
    low, high = low - room, high + room

    def x(value: float) -> str:
        return f"{WIDE * (value - low) / (high - low):.2f}%"

    labels, texts, marks = [], [], []
    for k, name in enumerate(ordered):
        y, centre = ROW * k + ROW / 2, mean(values[name])
        text = value_text(metric, centre)
        if differences:
            text = gain_text(metric, centre, size)
        labels.append(f'<li title="{esc(name)}">{esc(name)}</li>')
        texts.append(f"<li>{esc(text)}</li>")
        a, b = spans[name]
        marks.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        if b > a:
            marks.append(
                f'<line x1="{x(a)}" x2="{x(b)}" y1="{y}" y2="{y}" '
                'stroke="var(--personal)" stroke-width="3"/>'
            )
        for value in values[name]:
            marks.append(f'<circle cx="{x(value)}" cy="{y}" r="3" fill="var(--soft)"/>')
        marks.append(f'<circle cx="{x(centre)}" cy="{y}" r="6" fill="var(--personal)"/>')
    if differences:
        marks.append(
            f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="{ROW * len(ordered)}" stroke="var(--ink)" '
            'stroke-dasharray="4 3"/>'
        )
    height = ROW * len(ordered)
    for tick in ticks(low, high, TICKS):
        text = value_text(metric, tick) if not differences else gain_text(metric, tick, size)
        marks.insert(
            0,
            f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="{height}"/>'
            f'<text x="{x(tick)}" y="{height + 16}" text-anchor="middle">{esc(text)}</text>',
        )
    said = "; ".join(f"{name} {value_text(metric, mean(values[name]))}" for name in ordered)
    style = f"padding:0;line-height:{ROW}px"
    item = f"height:{ROW}px;line-height:{ROW}px"
    lists = ["".join(part).replace("<li", f'<li style="{item}"') for part in (labels, texts)]
    return (
        '<figure><div class="compared">'
        f'<ol style="{style}">{lists[0]}</ol>'
        f'<svg role="img" aria-label="{esc(said)}" width="100%" height="{height + AXIS}">'
        f"{''.join(marks)}</svg>"
        f'<ol style="{style}">{lists[1]}</ol></div></figure>'
    )


def _span(values: Sequence[float], differences: bool) -> tuple[float, float]:
    centre, width = paired_interval(values)
    if not differences or width != width:
        return centre, centre
    return centre - width, centre + width
