"""A run's outcome in a few sentences, from its figures."""

from __future__ import annotations

from collections.abc import Sequence

from fedpers.evaluation.metrics import harmed_clients
from fedpers.evaluation.page import plural
from fedpers.evaluation.report import spent_of
from fedpers.evaluation.run_files import RunRecord
from fedpers.evaluation.shown import gain_text, unit_of, value_text, with_unit
from fedpers.tasks.base import Metric

NAMED = 8
"""At most so many clients are named."""

FEW = 10
"""Test examples a client, below which a single client's loss is almost never significant."""

SAME = 0.0005
"""Shares that differ by less are the same to the decimal that is shown; other figures if they do
so relative to their size."""


def sentences(run: RunRecord) -> list[str]:
    """What personalisation gave over global and over local, whom it harmed, what it cost."""
    own = run.score("personal", "mean")
    if own is None:
        return [_without_figures(run), *_privacy(run)]
    scored = run.number("selected_round")
    after = "" if scored is None else f"After {plural(int(scored), 'round')}, "
    figure = run.metric.told.format(with_unit(run.metric, own, run.unit))
    start = f"{after}a client’s personal model {figure} its own test examples"
    told = [
        f"{start} on average (mean over clients).",
        *_against(run, "global", "The global model", "personalisation"),
        *_against(run, "local", "A model trained on the client alone", "the federation"),
        *_against(run, "base", "The model before any training", "training"),
        *_harmed(run),
        *_gate(run),
        *_privacy(run),
    ]
    return [sentence[0].upper() + sentence[1:] for sentence in told if sentence]


def _without_figures(run: RunRecord) -> str:
    evaluation, label = run.config.get("evaluation"), run.metric.label
    figures = "accuracies" if label == "accuracy" else f"figures of {label}"
    if isinstance(evaluation, dict) and evaluation.get("diagnostics") is False:
        return (
            f"There are no {figures}: the clients keep their results to themselves, unless "
            "evaluation.diagnostics is on."
        )
    return f"There are no {figures}: no client was evaluated."


def _against(run: RunRecord, mode: str, name: str, by: str) -> list[str]:
    base, difference = run.score(mode, "mean"), run.number(f"gain_over_{mode}")
    if base is None or difference is None:
        return []
    metric = run.metric
    low, low_own = (run.score(m, "worst_decile") for m in (mode, "personal"))
    worst = ""
    if low is not None and low_own is not None and not _alike(metric, low_own, low):
        own, other = value_text(metric, low_own), with_unit(metric, low, run.unit)
        worst = f"; in the worst tenth of clients {own} against {other}"
    start = f"{name} gives {with_unit(metric, base, run.unit)}: {by} "
    if _alike(metric, base + difference, base):
        return [f"{start}changes nothing on average{worst}."]
    return [f"{start}{_change(metric, difference, base, run.unit)}{worst}."]


def _alike(metric: Metric, one: float, other: float) -> bool:
    """Whether two figures are the same to the last digit that is shown."""
    same = SAME if metric.unit == "share" else SAME * max(abs(one), abs(other))
    return abs(one - other) < same


def _change(metric: Metric, gain: float, base: float, unit: str) -> str:
    """By how much a figure gets better or worse; a gain is told as what happens to it."""
    amount = gain_text(metric, abs(gain), base).lstrip("+")
    if metric.unit == "share" and metric.better == "higher":
        return f"adds {amount} points" if gain > 0 else f"costs {amount} points"
    amount = f"{amount} {'points' if metric.unit == 'share' else unit_of(metric, unit)}".rstrip()
    raises = (gain > 0) == (metric.better == "higher")
    return f"{'raises' if raises else 'lowers'} it by {amount}"


def _harmed(run: RunRecord) -> list[str]:
    tests = [r.test for r in run.results if r.test.n]
    gains = [
        run.metric.gain(t, "personal", "global")
        for t in tests
        if "global" in t.modes and "personal" in t.modes
    ]
    if not gains:
        return []
    better = sum(gain > 0 for gain in gains if gain is not None)
    worse = sum(gain < 0 for gain in gains if gain is not None)
    start = f"Of {plural(len(gains), 'client')}, {better} did better with the personal model "
    start += f"than with the global one and {worse} worse"
    harmed = harmed_clients(run.results)
    if not harmed:
        told = f"{start}; for none is the loss significant, so nobody is counted as harmed."
        examples = sum(t.n for t in tests) / len(tests)
        if examples < FEW and worse:
            told += f" With {examples:.1f} test examples a client, hardly any loss could be."
        return [told]
    return [f"{start}; {len(harmed)} significantly, and counted as harmed: {named(harmed)}."]


def _gate(run: RunRecord) -> list[str]:
    coverage, gated = run.number("gate", "coverage_clients"), run.score("gated", "mean")
    if coverage is None or gated is None:
        return []
    clients = run.number("scored", "clients") or 0
    share = f"{round(coverage * clients)} of {clients:.0f} clients"
    mean = with_unit(run.metric, gated, run.unit)
    return [f"The gate deploys the personal model at {share}; its mean is {mean}."]


def _privacy(run: RunRecord) -> list[str]:
    if run.number("privacy", "epsilon_max") is None:
        return []
    privacy = run.report["privacy"]
    unit, near = privacy.get("unit"), privacy.get("neighbours")
    whose = "one client’s data as a whole" if unit == "client" else "any one training example"
    spent = spent_of({name: run.number("privacy", name) for name in ("epsilon_max", "delta", "mu")})
    beyond = privacy.get("not_covered")
    beyond = beyond if isinstance(beyond, list) else []
    return [
        f"What left the clients is differentially private for {whose}: {spent}.",
        *([f"That says nothing of {'; nor of '.join(map(str, beyond))}."] if beyond else []),
        *([f"What may differ between neighbours: {near}."] if isinstance(near, str) else []),
    ]


def named(clients: Sequence[str]) -> str:
    """Names, at most ``NAMED`` of them."""
    more = len(clients) - NAMED
    return ", ".join(clients[:NAMED]) + (f" and {more} more" if more > 0 else "")
