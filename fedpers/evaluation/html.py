"""``report.html``: a run on one page, which needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedpers.evaluation import charts, grids
from fedpers.evaluation.html_privacy import audit_section, encryption_section, privacy_section
from fedpers.evaluation.metrics import harmed_clients
from fedpers.evaluation.page import (
    ABSENT,
    bars,
    by_name,
    duration,
    esc,
    facts,
    figure,
    meanings,
    page,
    percent,
    plural,
    section,
    size,
    table,
)
from fedpers.evaluation.run_files import RunRecord, number, read_run
from fedpers.evaluation.run_folder import replace_file
from fedpers.evaluation.shown import gain_text, in_unit, learned, unit_of, value_text, with_unit
from fedpers.evaluation.words import named, sentences
from fedpers.privacy.accounting import rounded_up
from fedpers.tasks.base import MODES, Metric

MEANINGS = {
    "personal, global": "a client’s own model; the one that all share",
    "local": "a model trained on the client alone, for as many epochs",
    "gated": "of personal and global the one that validation counts speak for",
    "mean, weighted": "over clients, each the same; over all their test examples",
    "worst decile": "the mean of the tenth of clients that do worst",
    "most frequent answer": "the share of predictions that are of one class, the most frequent at "
    "the client; and of its labels",
    "oracle gap": "what the better of both models at each client would give beyond the gate",
}
GINI = {"Gini": "how unequal the clients’ figures are; 0 is the same for all"}
LOSSES = {
    "breakage, fix": "of what the global model has right, the share that is lost; of what it has "
    "wrong, the share that is gained (of numbers: of examples that get worse, and better)",
    "harmed": "clients that lose significantly (one-sided sign test, 5 % of them by chance)",
}
"""What stands under its table, as few people know the words."""


FIRST = {"mean": "mean", "weighted": "weighted", "worst decile": "worst_decile"}
LAST = {"min": "min", "max": "max", "spread (std)": "std"}
"""Columns about the headline, before and after the other metrics: title and name in the report."""


def write_html(run_folder: Path, report: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` into a run's folder, from the files there. Whole or not at all.

    Args:
        report: of a run that has no ``report.json``.

    Returns:
        Its path.

    Raises:
        ConfigError: not the folder of a finished run.
        OSError: it cannot be written.
    """
    run = read_run(run_folder, report)
    path = run_folder / "report.html"
    replace_file(path, build_html(run))
    return path


def build_html(run: RunRecord) -> str:
    """The whole document."""
    strategy, data = run.report.get("strategy") or "a run", run.config.get("data")
    name = run.report.get("data")
    if name is None and isinstance(data, Mapping):
        name = Path(str(data["path"])).name if data.get("path") else data.get("name")
    title = f"{strategy} on {name}" if name else str(strategy)
    body = [
        _head(run, title),
        _figures(run),
        _clients(run),
        _curves(run),
        _labels(run),
        _similarity(run),
        privacy_section(run),
        audit_section(run),
        _costs(run),
        encryption_section(run),
        _settings(run),
    ]
    return page(f"{title}: personalisation report", "\n".join(piece for piece in body if piece))


def _head(run: RunRecord, title: str) -> str:
    report = run.report
    # Without an evaluation the report counts no client.
    trained = max((number(line, "answered") or 0 for line in run.rounds), default=0)
    about = [
        str(report.get("run_id") or run.path.name),
        plural(int(run.number("clients") or trained), "client"),
        plural(int(run.number("rounds") or 0), "round"),
        f"seed {ABSENT if report.get('seed') is None else report.get('seed')}",
    ]
    about += [text] if (text := learned(report)) else []
    first, *more = sentences(run)
    failed = report.get("failed")
    warned = f"<p class='warn'>This run failed: {esc(failed)}.</p>\n" if failed else ""
    if stopped := report.get("stopped"):
        warned = f"<p class='warn'>This run was stopped {esc(stopped)}.</p>\n"
    head = f"<header><h1>{esc(title)}</h1><p class='soft'>{esc(' · '.join(about))}</p></header>"
    told = "".join(f"<li>{esc(_together(sentence))}</li>" for sentence in more)
    rest = f"<ul class='told'>{told}</ul>" if told else ""
    return f"{head}\n{warned}{_tiles(run)}\n<p class='lead'>{esc(_together(first))}</p>\n{rest}"


def _together(text: str) -> str:
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _tiles(run: RunRecord) -> str:
    harmed, scored = run.number("harmed_share"), run.number("scored", "clients")
    metric, unit = run.metric, run.unit

    def gain(value: float) -> str:
        return gain_text(metric, value, run.score("personal", "mean"))

    better = "points over" if metric.unit == "share" else f"{metric.label} better than"
    tiles = [
        (
            f"personal {metric.label}",
            run.score("personal", "mean"),
            lambda v: with_unit(metric, v, unit),
        ),
        (f"{better} global", run.number("gain_over_global"), gain),
        (f"{better} local", run.number("gain_over_local"), gain),
        (f"{better} base", run.number("gain_over_base"), gain),
        ("clients harmed", harmed, lambda v: f"{round(v * (scored or 0))} of {scored or 0:.0f}"),
        (
            "epsilon spent, at most",
            run.number("privacy", "epsilon_max"),
            rounded_up,
        ),
    ]  # type: list[tuple[str, float | None, Callable[[float], str]]]
    shown = "".join(
        f"<div><dt>{esc(name)}</dt><dd>{esc(text(value))}</dd></div>"
        for name, value, text in tiles
        if value is not None
    )
    return f'<dl class="tiles">{shown}</dl>' if shown else ""


def _figures(run: RunRecord) -> str:
    modes = [mode for mode in MODES if run.score(mode, "mean") is not None]
    if not modes:
        return ""
    metric = run.metric
    columns: list[tuple[str, Callable[[str], str]]] = [
        *(_of_headline(run, title, name) for title, name in FIRST.items()),
        *(_of_metric(run, *known) for known in [*run.task.metrics.items()][1:]),
        *(_of_headline(run, title, name) for title, name in LAST.items()),
        ("Gini", lambda m: figure(run.number("gini", m))),
    ]
    head = ["model", *(name for name, _ in columns)]
    rows = [[mode, *(cell(mode) for _, cell in columns)] for mode in modes]
    scored = run.report.get("scored")
    moment = scored.get("moment") if isinstance(scored, Mapping) else None
    examples = plural(int(run.number("scored", "examples") or 0), "test example")
    clients = plural(int(run.number("scored", "clients") or 0), "client")
    unit = "percent" if metric.unit == "share" else unit_of(metric, run.unit)
    note = f"{f'In {unit}, over' if unit else 'Over'} {examples} of {clients}"
    note += f"; the personal model is scored {moment}." if moment else "."
    known = {m.label: m.meaning for m in run.task.metrics.values() if m.meaning}
    return section(
        _title(metric),
        table(head, rows),
        f'<p class="soft">{esc(note)}</p>',
        meanings(known | GINI),
        _further(run, modes),
        f"<details><summary>What the other words mean</summary>{facts(MEANINGS)}</details>",
    )


def _title(metric: Metric) -> str:
    return metric.label[0].upper() + metric.label[1:]


def _of_headline(run: RunRecord, title: str, name: str) -> tuple[str, Callable[[str], str]]:
    return title, lambda mode: value_text(run.metric, run.score(mode, name))


def _of_metric(run: RunRecord, name: str, metric: Metric) -> tuple[str, Callable[[str], str]]:
    key = f"{name}_pooled" if metric.pools else name
    return metric.label, lambda mode: value_text(metric, run.number(key, mode))


def _further(run: RunRecord, modes: list[str]) -> str:
    """Harm, the gate and collapse, by mode; then what exists once."""
    metric, rows = run.metric, list[list[str]]()
    shares = metric.unit == "share"

    def row(title: str, known: Mapping[str, str]) -> None:
        if any(known.get(mode, ABSENT) != ABSENT for mode in modes):
            rows.append([title, *(known.get(mode, ABSENT) for mode in modes)])

    def in_percent(value: float | None) -> str:
        return percent(value) + ("" if shares or value is None else " %")

    for name, key in (
        ("breakage", "breakage_rate"),
        ("fix", "fix_rate"),
        ("harmed", "harmed_share"),
    ):
        values = {"personal": run.number(key), "gated": run.number("gated", key)}
        row(name, {mode: in_percent(value) for mode, value in values.items()})
    outside = {mode: run.number("out_of_client", mode) for mode in ("personal", "global")}
    others = {mode: value_text(metric, value) for mode, value in outside.items()}
    row(f"{metric.label} on others’ data", others)
    answers = {mode: percent(run.number("collapse", mode, "share")) for mode in MODES}
    row("most frequent answer", answers)
    classes = {mode: figure(run.number("collapse", mode, "classes"), 1) for mode in MODES}
    row("classes answered (number)", classes)
    notes = []
    labels = run.number("collapse", modes[0], "classes_labelled")
    share = run.number("collapse", modes[0], "share_labelled")
    if labels is not None:
        text = f"A client’s labels are of {labels:.1f} classes on average"
        notes.append(f"{text}, {percent(share)} % of them of the most frequent one.")
    examples = run.number("gate", "coverage_examples")
    if examples is not None:
        best = run.score("personal", "mean")
        gap = gain_text(metric, run.number("gate", "oracle_gap"), best).lstrip("+")
        of = unit_of(metric, run.unit)
        better = f"give {gap} points more" if shares else f"be {f'{gap} {of}'.rstrip()} better"
        notes.append(
            f"The gate deploys personal models for {percent(examples)} % of the test examples; the "
            f"better of both models at each client would {better}."
        )
    started = run.report.get("cold_start")
    if isinstance(started, Mapping):
        cold = [(str(b), number(started, b, "mean")) for b in started]
        told = [
            f"{with_unit(metric, mean, run.unit)} after {b} batches"
            for b, mean in cold
            if mean is not None
        ]
        if told:
            notes.append(f"Newcomers that never trained: {', '.join(told)}.")
    again = table(["in %" if shares else "", *modes], rows) + meanings(LOSSES) if rows else ""
    return again + "".join(f'<p class="soft">{esc(note)}</p>' for note in notes)


def _clients(run: RunRecord) -> str:
    tests = {r.client: r.test for r in run.results if r.test.n}
    pairs = (("global", "personal"), ("local", "personal"), (None, "personal"), (None, "global"))
    for base, own in (*pairs, (None, "local")):
        needed = {own} if base is None else {base, own}
        having = {client: t for client, t in tests.items() if needed <= set(t.modes)}
        if having:
            break
    else:
        return ""
    harmed = set(harmed_clients(run.results)) if base == "global" else set()
    metric, rows = run.metric, []
    for client, tally in having.items():
        value = metric.of([tally], own)
        before = None if base is None else metric.of([tally], base)
        if value is None or (base is not None and before is None):
            continue
        gain = 0.0 if base is None else metric.gain(tally, own, base) or 0.0
        rows.append(charts.Dumbbell(client, before, value, gain, client in harmed))
    if not rows:
        return ""
    change = f"from the {base} to the {own} model" if base else f"with the {own} model"
    note = f"Test {metric.label}{in_unit(metric, run.unit)} {change}, a row a client"
    if base:
        gains = [row.gain for row in rows]
        up, down = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        note += f", best gain first: {up} gain, {down} lose, {len(gains) - up - down} stay."
    else:
        note += ", best first."
    if len(rows) > charts.LABELLED:
        note += " A touch or the mouse names the client."
    elif any(row.gain < 0 for row in rows):
        note += " A broken line: the personal model is worse."
    if len(rows) > charts.MOST_ROWS:
        note += f" {charts.MOST_ROWS} of {len(rows)} clients, at equal steps."
    if harmed:
        note += f" Harmed: {named(sorted(harmed, key=by_name))}."
    failed = run.failures
    if failed:
        count = sum(failed.values())
        note += f" {plural(len(failed), 'client')} failed, {plural(count, 'time')} in all: "
        note += f"{named(sorted(failed, key=by_name))}."
    plot = charts.dumbbells(rows, base, own, metric, run.unit)
    return section("Each client", f"<figure>{plot}<figcaption>{esc(note)}</figcaption></figure>")


def _curves(run: RunRecord) -> str:
    def over_rounds(name: str) -> list[tuple[int, float]]:
        found = [(line["round"], number(line, name)) for line in run.rounds]
        return [(server_round, value) for server_round, value in found if value is not None]

    figures = []
    scores = [(m, over_rounds(m)) for m in ("personal", "global") if over_rounds(m)]
    if scores:
        title = f"Mean test {run.metric.label}"
        plot = charts.curves(scores, f"{title} by round", run.metric, run.unit)
        figures.append(f"<figure><h3>{esc(title)}</h3>{plot}</figure>")
    loss = over_rounds("loss")
    if loss:
        plot = charts.curves([("loss", loss)], "Training loss by round")
        figures.append(f"<figure><h3>Training loss</h3>{plot}</figure>")
    return section("By round", f'<div class="pair">{"".join(figures)}</div>' if figures else "")


def _labels(run: RunRecord) -> str:
    tested = {r.client: run.task.make_up(r.test) for r in run.results if r.test.n}
    found = {client: counts for client, counts in tested.items() if counts}
    if not found:
        return ""
    note = (
        "Test examples by class (across) at each client (down), sorted by its most frequent class."
    )
    grid = grids.label_grid(list(found), list(found.values()), run.names)
    return section(
        "Labels of each client", f"<figure>{grid}<figcaption>{esc(note)}</figcaption></figure>"
    )


def _similarity(run: RunRecord) -> str:
    given = run.report.get("similarity")
    k = len(given) if isinstance(given, list) else 0
    if k < 2 or not isinstance(given, list):
        return ""
    if not all(isinstance(row, list) and len(row) == k for row in given):
        return ""
    matrix = [[number({"v": value}, "v") or 0.0 for value in row] for row in given]
    note = "How alike the clients are to the server, in its order; a client with itself is empty."
    grid = grids.similarity_grid(matrix)
    return section(
        "Similarity of the clients",
        f"<figure>{grid}<figcaption>{esc(note)}</figcaption></figure>",
    )


def _costs(run: RunRecord) -> str:
    stages = ("train", "combine", "encrypt", "decrypt", "evaluate")
    seconds = [(s, run.number("seconds", s)) for s in stages]
    spent = [(s, value, duration(value)) for s, value in seconds if value is not None]
    total = run.number("seconds", "total")
    if total is not None and spent:
        rest = max(0.0, total - sum(value for _, value, _ in spent))
        spent.append(("the rest", rest, duration(rest)))
    sent = [
        (name, value, size(value))
        for name, key in (
            ("clients to server", "uplink_bytes"),
            ("server to clients", "downlink_bytes"),
        )
        if (value := sum(number(line, key) or 0.0 for line in run.rounds))
    ]
    each = [
        run.number("communication", f"{way}_bytes_per_client_round")
        for way in ("uplink", "downlink")
    ]
    pieces = []
    if spent:
        whole = (
            f"{duration(total)} in all, {duration(run.number('seconds', 'round_median'))} a round"
        )
        chart = bars(spent, "Seconds by stage")
        pieces.append(f'<div><h3>Time</h3>{chart}<p class="soft">{esc(whole)}</p></div>')
    if sent:
        whole = f"A client sends {size(each[0])} a round and receives {size(each[1])}."
        chart = bars(sent, "Bytes sent")
        pieces.append(f'<div><h3>Bytes</h3>{chart}<p class="soft">{esc(whole)}</p></div>')
    return section("What it took", f'<div class="pair">{"".join(pieces)}</div>' if pieces else "")


def _settings(run: RunRecord) -> str:
    environment = run.report.get("environment")
    where = facts(environment) if isinstance(environment, Mapping) else ""
    settings = f'<pre tabindex="0">{esc(run.settings)}</pre>' if run.settings else ""
    return f"<details><summary>Settings and environment</summary>{settings}{where}</details>"
