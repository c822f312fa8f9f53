"""Figures of a report as SVG: places across are in percent, so that text never shrinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedpers.evaluation.page import by_name, esc
from fedpers.evaluation.shown import gain_text, unit_of, value_text, with_unit
from fedpers.tasks.base import Metric

MARKS = {
    "personal": '<circle r="{r}" fill="var(--personal)"/>',
    "global": '<circle r="{r}" fill="var(--page)" stroke="var(--global)" stroke-width="2"/>',
    "gated": '<path d="M0 -{r}L{r} 0L0 {r}L-{r} 0Z" fill="var(--gated)"/>',
    "local": '<path d="M-{r} -{r}H{r}V{r}H-{r}Z" fill="var(--page)" stroke="var(--local)" '
    'stroke-width="2"/>',
    "harmed": '<path d="M-{r} -{r}H{r}L0 {r}Z" fill="var(--harm)"/>',
}
"""The sign of each model, told apart by shape as well as colour; centred, of radius {r}."""

DASHES = {"personal": "", "global": "7 4", "gated": "2 3", "local": "10 3 2 3", "loss": ""}

LABELLED = 40
"""With more clients the rows of a plot are thin and have no names."""

MOST_ROWS = 400


@dataclass(frozen=True)
class Dumbbell:
    """One client's figures: of the model compared with (None: none), and of its own.

    ``gain``: by how much its own is better; without a base, 0.
    """

    client: str
    base: float | None
    own: float
    gain: float
    harmed: bool = False


def dumbbells(
    rows: Sequence[Dumbbell],
    base_mode: str | None,
    own_mode: str,
    metric: Metric,
    unit: str = "",
) -> str:
    """A row a client, from its figure with one model to that with the other, best gain first.

    Without a base mode, dots by the figure, the best first. Of more than ``MOST_ROWS`` clients, as
    many at equal steps.
    """
    best = -1 if metric.better == "higher" else 1
    order = sorted(rows, key=lambda row: (-row.gain, best * row.own, by_name(row.client)))
    shown = _thinned(order)
    dense = len(shown) > LABELLED
    pitch, radius, top = (5, 2, 26) if dense else (22, 5, 26)
    faint = ' opacity=".55"' if dense else ""
    values = [v for row in shown for v in (row.own, row.base) if v is not None]
    if metric.unit == "share":
        low = math.floor(min(values) * 10) / 10 if min(values) < 1 else 0.9
        places, high = ticks(low, 1.0, 4), 1.0
    else:
        places = ticks(min(values), max(values), 4, outside=True)
        low, high = places[0], places[-1]
    scale = Scale(low, high)
    height = top + len(shown) * pitch + 4
    parts = [
        f'<line class="grid" x1="{scale(tick)}" x2="{scale(tick)}" y1="20" y2="{height}"/>'
        f'<text x="{scale(tick)}" y="12" text-anchor="middle">{_tick(metric, tick)}</text>'
        for tick in places
    ]
    for index, row in enumerate(shown):
        y = top + index * pitch + pitch / 2
        parts.append(f"<g><title>{esc(_told(row, base_mode, own_mode, metric, unit))}</title>")
        if row.base is not None:
            color = "--harm" if row.harmed else f"--{own_mode}"
            falls = row.gain < 0
            dash = ' stroke-dasharray="4 3"' if falls and not dense else ""
            width = (1 if falls and not row.harmed else 2) if dense else 3
            parts.append(
                f'<line x1="{scale(row.base)}" x2="{scale(row.own)}" y1="{y}" y2="{y}" '
                f'stroke="var({color})" stroke-width="{width}"{dash}{faint}/>'
            )
            parts.append(
                mark(base_mode or "global", scale(row.base), y, 1 if dense else radius + 1)
            )
        own = "harmed" if row.harmed else own_mode
        parts.append(mark(own, scale(row.own), y, radius + (2 if row.harmed else 0)) + "</g>")
    label = metric.label[0].upper() + metric.label[1:]
    label = f"{label} of {len(shown)} clients, {base_mode or 'no'} model to {own_mode} model"
    plot = _svg(label, height, parts)
    key = [(base_mode, f"{base_mode} model")] if base_mode else []
    key.append((own_mode, f"{own_mode} model"))
    if any(row.harmed for row in rows):
        key.append(("harmed", "significantly worse (harmed)"))
    if dense:
        return legend(key) + f'<div class="clients dense">{plot}</div>'
    names = "".join(f"<li{_harm(r)} title='{esc(r.client)}'>{esc(r.client)}</li>" for r in shown)
    told = [
        gain_text(metric, r.gain, r.own) if base_mode else value_text(metric, r.own) for r in shown
    ]
    gains = "".join(f"<li{_harm(r)}>{esc(t)}</li>" for r, t in zip(shown, told, strict=True))
    rows_ = f'<ol aria-hidden="true">{names}</ol>{plot}<ol class="gains">{gains}</ol>'
    return legend(key) + f'<div class="clients">{rows_}</div>'


def curves(
    series: Sequence[tuple[str, Sequence[tuple[int, float]]]],
    label: str,
    metric: Metric | None = None,
    unit: str = "",
) -> str:
    """Lines over rounds: name (a mode, or "loss") and its points (round, value), at least one.

    Args:
        metric: what the values are of; None for a loss, a number from 0 up.
        unit: of what is predicted.
    """
    xs = [x for _, found in series for x, _ in found]
    ys = [y for _, found in series for _, y in found]
    low, high = (min(ys), max(ys)) if metric else (min(0.0, *ys), max(ys))
    marks = ticks(low, high, 5, outside=True)
    across, up = Scale(min(xs), max(xs)), Scale(marks[0], marks[-1])
    height, parts = 220, []
    for tick in marks:
        y = height * (1 - up.at(tick))
        text = _tick(metric, tick)
        parts.append(
            f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for whole in sorted({round(tick) for tick in ticks(min(xs), max(xs), 5)}):
        parts.append(
            f'<text x="{across(whole)}" y="{height + 18}" text-anchor="middle">{whole}</text>'
        )
    for name, found in series:
        color = "--personal" if name == "loss" else f"--{name}"
        places = [(across(x), height * (1 - up.at(y)), x, y) for x, y in found]
        style = f'stroke="var({color})" stroke-width="2" stroke-dasharray="{DASHES.get(name, "")}"'
        parts += [
            f'<line x1="{a[0]}" x2="{b[0]}" y1="{a[1]:.1f}" y2="{b[1]:.1f}" {style}/>'
            for a, b in pairwise(places)
        ]
        sign = "personal" if name == "loss" else name
        for x, y, server_round, value in places if len(places) <= 30 else places[-1:]:
            shown = _shown(value, metric, unit)
            told = f"<title>{esc(name)}, round {server_round}: {esc(shown)}</title>"
            parts.append(f"<g>{told}{mark(sign, x, y, 4)}</g>")
    parts.append(f'<text x="100%" y="{height + 36}" text-anchor="end">round</text>')
    ends = {name: _shown(found[-1][1], metric, unit) for name, found in series}
    key = [("personal" if n == "loss" else n, f"{n} {end} at the end") for n, end in ends.items()]
    return legend(key) + f'<div class="plot">{_svg(label, height + 40, parts)}</div>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """What the marks mean: a mark's name and its text."""
    lines = "".join(
        f'<li><svg width="14" height="14" aria-hidden="true">{mark(name, "7", 7, 5)}</svg>'
        f"{esc(text)}</li>"
        for name, text in entries
    )
    return f'<ul class="key">{lines}</ul>'


def mark(name: str, x: str, y: float, radius: int) -> str:
    """The sign of a model at a place."""
    return f'<svg x="{x}" y="{y:g}">{MARKS[name].format(r=radius)}</svg>'


@dataclass(frozen=True)
class Scale:
    """From low..high to the width of a figure."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """The place in 0..1; in the middle where low is high."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def __call__(self, value: float) -> str:
        return f"{100 * self.at(value):.2f}%"


def ticks(low: float, high: float, most: int, *, outside: bool = False) -> list[float]:
    """Round numbers in low..high, about ``most`` at most.

    Args:
        outside: go on to the next round number beyond both ends.
    """
    if high <= low:
        if not outside:
            return [low]
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = (math.floor, math.ceil) if outside else (math.ceil, math.floor)
    start, end = (
        first(low / step + (1e-9 if outside else -1e-9)),
        last(high / step + (-1e-9 if outside else 1e-9)),
    )
    return [round(k * step, 12) for k in range(start, end + 1)]


def _svg(label: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{esc(label)}" width="100%" height="{height:g}">'
        f"{''.join(parts)}</svg>"
    )


def _thinned(rows: Sequence[Dumbbell]) -> list[Dumbbell]:
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (MOST_ROWS - 1))] for k in range(MOST_ROWS)]


def _told(row: Dumbbell, base_mode: str | None, own_mode: str, metric: Metric, unit: str) -> str:
    text = f"{row.client}: {own_mode} {with_unit(metric, row.own, unit)}"
    if row.base is not None:
        of = "points" if metric.unit == "share" else unit_of(metric, unit)
        gain = f"{gain_text(metric, row.gain, row.own)} {of}".rstrip()
        text += f", {base_mode} {with_unit(metric, row.base, unit)} ({gain})"
    return text + (", harmed" if row.harmed else "")


def _harm(row: Dumbbell) -> str:
    return ' class="harmed"' if row.harmed else ""


def _tick(metric: Metric | None, tick: float) -> str:
    return f"{round(100 * tick, 6):g} %" if metric and metric.unit == "share" else f"{tick:g}"


def _shown(value: float, metric: Metric | None, unit: str) -> str:
    return f"{value:.3f}" if metric is None else with_unit(metric, value, unit)
