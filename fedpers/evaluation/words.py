"""A run's outcome in a few sentences, from its figures."""

from __future__ import annotations

from collections.abc import Sequence

from fedpers.evaluation.metrics import harmed_clients
from fedpers.evaluation.page import percent, plural, points
from fedpers.evaluation.run_files import RunRecord

NAMED = 8
"""At most so many clients are named."""

FEW = 10
"""Test examples a client, below which a single client's loss is almost never significant."""

SAME = 0.0005
"""Accuracies that differ by less are the same to the decimal that is shown."""


def sentences(run: RunRecord) -> list[str]:
    """What personalisation gave over global and over local, whom it harmed, what it cost."""
    own = run.number("accuracy", "personal", "mean")
    if own is None:
        return [_without_accuracies(run), *_privacy(run)]
    scored = run.number("selected_round")
    after = "" if scored is None else f"After {plural(int(scored), 'round')}, "
    start = (
        f"{after}a client’s personal model is right on {percent(own)} % of its own test examples"
    )
    told = [
        f"{start} on average (mean over clients).",
        *_against(run, "global", "The global model", "personalisation"),
        *_against(run, "local", "A model trained on the client alone", "the federation"),
        *_harmed(run),
        *_gate(run),
        *_privacy(run),
    ]
    return [sentence[0].upper() + sentence[1:] for sentence in told if sentence]


def _without_accuracies(run: RunRecord) -> str:
    evaluation = run.config.get("evaluation")
    if isinstance(evaluation, dict) and evaluation.get("diagnostics") is False:
        return (
            "There are no accuracies: the clients keep their results to themselves, unless "
            "evaluation.diagnostics is on."
        )
    return "There are no accuracies: no client was evaluated."


def _against(run: RunRecord, mode: str, name: str, by: str) -> list[str]:
    base, difference = run.number("accuracy", mode, "mean"), run.number(f"gain_over_{mode}")
    if base is None or difference is None:
        return []
    low, low_own = (run.number("accuracy", m, "worst_decile") for m in (mode, "personal"))
    worst = ""
    if low is not None and low_own is not None and abs(low_own - low) >= SAME:
        worst = f"; in the worst tenth of clients {percent(low_own)} against {percent(low)} %"
    start = f"{name} gives {percent(base)} %: {by} "
    if abs(difference) < SAME:
        return [f"{start}changes nothing on average{worst}."]
    amount = points(abs(difference)).lstrip("+")
    change = f"adds {amount} points" if difference > 0 else f"costs {amount} points"
    return [f"{start}{change}{worst}."]


def _harmed(run: RunRecord) -> list[str]:
    tests = [r.test for r in run.results if r.test.n]
    pairs = [t.correct for t in tests if "global" in t.correct and "personal" in t.correct]
    if not pairs:
        return []
    better = sum(c["personal"] > c["global"] for c in pairs)
    worse = sum(c["personal"] < c["global"] for c in pairs)
    start = f"Of {plural(len(pairs), 'client')}, {better} did better with the personal model "
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
    coverage, gated = (
        run.number("gate", "coverage_clients"),
        run.number("accuracy", "gated", "mean"),
    )
    if coverage is None or gated is None:
        return []
    clients = run.number("scored", "clients") or 0
    share = f"{round(coverage * clients)} of {clients:.0f} clients"
    return [f"The gate deploys the personal model at {share}; its mean is {percent(gated)} %."]


def _privacy(run: RunRecord) -> list[str]:
    epsilon, delta = run.number("privacy", "epsilon_max"), run.number("privacy", "delta")
    if epsilon is None:
        return []
    unit = run.report["privacy"].get("unit")
    whose = "one client’s data as a whole" if unit == "client" else "any one training example"
    at = "" if delta is None else f" at delta {delta:g}"
    beyond = run.report["privacy"].get("not_covered")
    beyond = beyond if isinstance(beyond, list) else []
    return [
        f"What left the clients is differentially private for {whose}: epsilon {epsilon:.2f}{at}.",
        *([f"That says nothing of {'; nor of '.join(map(str, beyond))}."] if beyond else []),
    ]


def named(clients: Sequence[str]) -> str:
    """Names, at most ``NAMED`` of them."""
    more = len(clients) - NAMED
    return ", ".join(clients[:NAMED]) + (f" and {more} more" if more > 0 else "")
