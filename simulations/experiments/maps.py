"""Where federation pays: which kind of model wins at so many examples and so much privacy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from fedpers.errors import ConfigError
from fedpers.evaluation.page import esc, page, section, table
from fedpers.evaluation.shown import gain_text, headline_of, learned, value_text
from fedpers.tasks.base import Metric
from simulations.experiments.compare import (
    Cell,
    cells,
    client_differences,
    columns,
    paired_interval,
    rows_of,
)

NONE = "none"
GLOBAL, LOCAL, FEW, PERSONAL = "global", "local", "few numbers", "personal"
KINDS = {"fedavg": GLOBAL, "local": LOCAL, "prior": FEW, "intercept": FEW}
MEANING = {
    GLOBAL: "one model for all",
    LOCAL: "each client alone",
    FEW: "one model, and a number a class of a client’s own",
    PERSONAL: "a model of each client’s own, learned together",
}
COLOURS = {
    GLOBAL: "66, 133, 244",
    LOCAL: "234, 150, 30",
    FEW: "150, 110, 210",
    PERSONAL: "40, 165, 110",
}
LEAST_VAL = 3  # validation examples; else a quarter of those that are trained on
Reports = Mapping[Cell, Mapping[str, Any]]


@dataclass(frozen=True)
class Region:
    """What is best at one size and epsilon.

    Attributes:
        kind, method, figure: of the best, its mean over clients and seeds.
        rival: the best method of another kind, and by how much it is worse, with the half width of
            the 95 % interval over clients; None without one.
        failed: methods without a figure.
    """

    size: int
    epsilon: str
    kind: str
    method: str
    figure: float
    rival: tuple[str, float, float] | None
    failed: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.rival is None or abs(self.rival[1]) > self.rival[2]


def kind_of(method: str) -> str:
    """Of a strategy as ``compare`` names it, with its parameters."""
    return KINDS.get(method.partition(":")[0], PERSONAL)


def plan_of(
    sizes: Sequence[str], epsilons: Sequence[str], strategies: Sequence[str], seeds: int
) -> dict[tuple[int, str], list[Cell]]:
    """The runs of a map, by size and epsilon.

    Raises:
        ConfigError: a size or an epsilon that is none.
    """
    made = {}
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError("--sizes", size, "numbers of training examples a client, 1 or more")
        for epsilon in epsilons:
            settings = [f"data.max_train={size}", f"data.max_val={max(LEAST_VAL, int(size) // 4)}"]
            if epsilon != NONE:
                if not _positive(epsilon):
                    raise ConfigError("--epsilons", epsilon, "none, or numbers above 0")
                settings += ["privacy.enabled=true", f"privacy.epsilon={epsilon}"]
            made[int(size), epsilon] = cells(strategies, seeds, settings)
    return made


def regions(plan: Mapping[tuple[int, str], Sequence[Cell]], reports: Reports) -> Iterator[Region]:
    """The best at each size and epsilon of which anything is there."""
    for (size, epsilon), own in plan.items():
        there = {cell: reports[cell] for cell in own if cell in reports}
        if not there:
            continue
        column = columns(there.values())["mean"]
        sign = 1 if column.metric.better == "higher" else -1
        rows = {method: found for (method, _), found in rows_of(there).items()}
        figures = {
            method: mean(values)
            for method, found in rows.items()
            if (values := [v for r in found.values() if (v := column.read(r)) is not None])
        }
        order = sorted(figures, key=lambda method: -sign * figures[method])
        failed = tuple(m for m in dict.fromkeys(c.method for c in own) if m not in figures)
        if not order:
            continue
        best, rival = order[0], None
        other = next((m for m in order if kind_of(m) != kind_of(best)), None)
        if other is not None:
            each = client_differences(rows[best], rows[other]) or [figures[best] - figures[other]]
            centre, width = paired_interval(each)
            rival = (other, centre, width if width == width else float("inf"))
        yield Region(size, epsilon, kind_of(best), best, figures[best], rival, failed)


def text(found: Sequence[Region], metric: Metric) -> str:
    """The map as a Markdown table: a row an epsilon, a column a size."""
    sizes = list(dict.fromkeys(region.size for region in found))
    by_place = {(region.epsilon, region.size): region for region in found}
    lines = [f"| epsilon | {' | '.join(map(str, sizes))} |", "|---" * (len(sizes) + 1) + "|"]
    for epsilon in dict.fromkeys(region.epsilon for region in found):
        told = [_told(by_place.get((epsilon, size)), metric) for size in sizes]
        lines.append(f"| {epsilon} | {' | '.join(told)} |")
    return "\n".join(lines)


def map_html(title: str, found: Sequence[Region], reports: Reports, command: str) -> str:
    """The page: a field for each size and epsilon, then all figures."""
    _, metric, _ = headline_of(next(iter(reports.values())))
    sizes = list(dict.fromkeys(region.size for region in found))
    by_place = {(region.epsilon, region.size): region for region in found}
    fields = [f"<b></b>{''.join(f'<b>{size}</b>' for size in sizes)}"]
    for epsilon in dict.fromkeys(region.epsilon for region in found):
        name = "no privacy" if epsilon == NONE else f"ε = {epsilon}"
        own = (_field(by_place.get((epsilon, size)), metric) for size in sizes)
        fields.append(f"<b>{esc(name)}</b>{''.join(own)}")
    grid = (
        f'<div class="scroll" tabindex="0"><div style="display:grid;gap:4px;font-size:.875rem;'
        f'grid-template-columns:max-content repeat({len(sizes)},minmax(8.5rem,1fr))">'
        f"{''.join(fields)}</div></div>"
    )
    key = "".join(
        f'<li><span style="{_ground(kind)};padding:0 .5rem">{esc(kind)}</span> '
        f"{esc(MEANING[kind])}</li>"
        for kind in dict.fromkeys(region.kind for region in found)
    )
    names = list(dict.fromkeys(cell.method for cell in reports))
    about = learned(next(iter(reports.values())))
    return page(
        title,
        "\n".join(
            [
                f"<header><h1>{esc(title)}</h1><p class='soft'>{esc(about or '')}</p></header>",
                section(
                    "What wins, by training examples a client",
                    f"<p>{esc(_how(metric))}</p><ul class='key'>{key}</ul>",
                    grid,
                ),
                section("Methods", table(["method", "kind"], [[n, kind_of(n)] for n in names])),
                section("How it was made", f"<pre>{esc(command)}</pre>"),
            ]
        ),
    )


def _how(metric: Metric) -> str:
    return (
        f"In each field: the kind with the best {metric.label}, its method and mean over clients, "
        "and by how much it is better than the best method of another kind, with the 95 % interval "
        "over clients. Where that crosses zero two kinds are named: the runs cannot say which."
    )


def _field(region: Region | None, metric: Metric) -> str:
    if region is None:
        return "<div>–</div>"
    kinds, lines = _kinds(region), [f"{esc(region.method)} {value_text(metric, region.figure)}"]
    if region.rival is not None:
        lines.append(esc(_lead(region, metric)))
    lines += [f"failed: {esc(', '.join(region.failed))}"] if region.failed else []
    return (
        f'<div style="{_ground(region.kind)};padding:.4rem .5rem;overflow-wrap:anywhere">'
        f"<strong>{esc(kinds)}</strong><br>{'<br>'.join(lines)}</div>"
    )


def _ground(kind: str) -> str:
    return f"background:rgba({COLOURS[kind]},.28);border-radius:.3rem"


def _kinds(region: Region) -> str:
    if region.decided or region.rival is None:
        return region.kind
    return f"{region.kind} ≈ {kind_of(region.rival[0])}"


def _lead(region: Region, metric: Metric) -> str:
    assert region.rival is not None
    other, centre, width = region.rival
    spread = f" ± {value_text(metric, width, region.figure)}" if width != float("inf") else ""
    return f"{gain_text(metric, centre, region.figure)}{spread} over {other.partition(':')[0]}"


def _told(region: Region | None, metric: Metric) -> str:
    if region is None:
        return "-"
    lead = f", {_lead(region, metric)}" if region.rival else ""
    return f"{_kinds(region)}: {region.method} {value_text(metric, region.figure)}{lead}"


def _positive(number: str) -> bool:
    try:
        return 0 < float(number) < float("inf")
    except ValueError:
        return False
