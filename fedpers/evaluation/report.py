"""The report of a run: what ``report.json`` holds, and its table for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

import fedpers
from fedpers.config import Config, Privacy
from fedpers.data.public import takes_from_clients
from fedpers.data.scaling import Scaling
from fedpers.evaluation import metrics
from fedpers.evaluation.gate import gate_summary
from fedpers.evaluation.results import ClientResult
from fedpers.evaluation.shown import headline_of, in_unit, value_text
from fedpers.privacy.accounting import rounded_up
from fedpers.tasks.base import MODES, Metric, Task, task_named

PACKAGES = ("flwr", "torch", "peft", "transformers", "opacus", "tenseal", "numpy")
COMMUNICATION = ("uplink_bytes_per_client_round", "downlink_bytes_per_client_round", "total_bytes")
PRIVACY = (
    "unit",
    "mechanism",
    "epsilon_max",
    "epsilon_mean",
    "delta",
    "mu",
    "neighbours",
    "accountant",
    "noise_multiplier",
    "max_grad_norm",
)
ACCOUNTANT = (
    "Gaussian releases of whole batches exactly; all else by the distribution of its privacy loss "
    "(connect the dots), from above, and its mu as the smallest whose Gaussian covers it at this "
    "delta and all larger ones"
)
ENCRYPTION = ("scheme", "bytes_per_parameter", "security_bits")
SECONDS = ("total", "round_median", "train", "combine", "encrypt", "decrypt", "evaluate")


def build_report(
    *,
    run_id: str,
    config: Config,
    evaluations: Mapping[int, Sequence[ClientResult]],
    communication: Mapping[str, int],
    seconds: Mapping[str, float],
    moment: str | None = None,
    newcomers: Mapping[int, Sequence[ClientResult]] | None = None,
    names: Sequence[str] = (),
    unit: str = "",
    inputs: Scaling | None = None,
    privacy: Mapping[str, Any] | None = None,
    encryption: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields of ``report.json``; a figure that the run does not have is None.

    Metrics are those of the task: its headline, by which models are compared, as a distribution
    over clients, the others as means over clients. They are of each client's test split, from one
    evaluation: the last, or the one that ``evaluation.select`` finds on validation splits.
    ``scored`` says which it was and over how many clients and examples.

    Args:
        evaluations: the clients' results by round.
        communication: bytes, by the names in ``COMMUNICATION``.
        seconds: by the names in ``SECONDS``.
        moment: when in a round the method's personal model is scored.
        privacy: the figures of a private run, see ``privacy_figures``.
        encryption: by the names in ``ENCRYPTION``, and ``enabled``.
        newcomers: the results of clients that never trained, by number of local batches.
        names: of the classes, or of the target.
        unit: of what is predicted.
        inputs: how features were scaled.

    Raises:
        ValueError: ``communication`` or ``seconds`` has a name that the report does not.
    """
    scaling = inputs or Scaling()
    # Choosing a round by the clients' validation splits would be one more release.
    wanted = "last" if config.privacy.enabled else config.evaluation.select
    task, _ = task_named(config.task)
    headline, metric = task.headline()
    selected, select = select_round(evaluations, wanted, metric)
    results = [] if selected is None else evaluations[selected]
    tested = [result for result in results if result.test.n > 0]
    cold_start = {
        str(steps): metrics.summary(held_out, metric, "personal")
        for steps, held_out in (newcomers or {}).items()
    }
    return {
        "run_id": run_id,
        "data": config.data.called,
        "strategy": config.strategy.name,
        "seed": config.seed,
        "rounds": config.rounds,
        "clients": len({r.client for evaluation in evaluations.values() for r in evaluation}),
        "selected_round": selected,
        "scored": {
            "split": "test",
            "select": select,
            "moment": moment,
            "clients": len(tested),
            "examples": sum(result.test.n for result in tested),
        },
        "task": {
            "name": config.task.name,
            "headline": headline,
            "better": metric.better,
            "names": list(names),
            "unit": unit,
        },
        "inputs": {**asdict(scaling), "about": scaling.about},
        headline: {mode: metrics.summary(results, metric, mode) for mode in task.modes()},
        "gain_over_global": metrics.mean_gain(results, metric, "global"),
        "gain_over_local": metrics.mean_gain(results, metric, "local"),
        "gain_over_base": metrics.mean_gain(results, metric, "base"),
        "breakage_rate": metrics.breakage_rate(results),
        "fix_rate": metrics.fix_rate(results),
        "harmed_share": metrics.harmed_share(results),
        "out_of_client": metrics.out_of_client(results, metric),
        "gated": {
            "breakage_rate": metrics.breakage_rate(results, "gated"),
            "fix_rate": metrics.fix_rate(results, "gated"),
            "harmed_share": metrics.harmed_share(results, "gated"),
        },
        **_other_metrics(task, results),
        **task.further({mode: metrics.tallies_of(results, "test", mode) for mode in task.modes()}),
        "gini": {mode: metrics.gini(results, metric, mode) for mode in task.modes()},
        "gate": gate_summary(results, metric),
        "cold_start": cold_start,
        "privacy": {"enabled": False, **dict.fromkeys(PRIVACY), **(privacy or {})},
        "encryption": {"enabled": False, **dict.fromkeys(ENCRYPTION), **(encryption or {})},
        "communication": _named("communication", communication, COMMUNICATION),
        "seconds": _named("seconds", seconds, SECONDS),
        "environment": environment(config.simulation.gpus_per_node),
    }


def privacy_figures(
    config: Config,
    spending: Mapping[str, Mapping[str, Any]],
    signal_to_noise: Mapping[str, float] | None = None,
    remarks: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> dict[str, Any]:
    """The report's figures on privacy: what left the clients, which bounds what the server, or
    anybody after it, can learn. What they do not bound is named, see ``not_covered``.

    Args:
        spending: for each client that took part, its epsilon, delta, mu and sigma so far; one for
            all where the unit is the client.
        signal_to_noise: of the mean updates over all rounds, by part.
        remarks: further lines for ``notes``, at their end.
        trust: whom one has to trust, at their beginning.
    """
    settings, spent, notes = config.privacy, list(spending.values()), list(trust)
    if config.evaluation.diagnostics:
        notes.append("losses and counts were sent without noise: figures for simulation only")
    if config.state is None and config.data.partition.name != "devices":
        notes.append("the ledgers are the run's own: another run on the same data starts anew")
    if settings.deterministic_for_tests:
        notes.append("the noise was drawn from the run's seed: nobody is protected")
    return {
        "enabled": True,
        "unit": settings.unit,
        "mechanism": settings.mechanism,
        "epsilon_max": max((s["epsilon"] for s in spent), default=0.0),
        "epsilon_mean": sum(s["epsilon"] for s in spent) / len(spent) if spent else 0.0,
        "delta": max((s["delta"] for s in spent), default=None),
        "mu": max((s["mu"] for s in spent), default=0.0),
        "neighbours": neighbours(settings),
        "accountant": ACCOUNTANT,
        "noise_multiplier": max((s["sigma"] for s in spent), default=None),
        "max_grad_norm": settings.max_grad_norm,
        "per_client": {client: s["epsilon"] for client, s in spending.items()},
        "signal_to_noise": dict(signal_to_noise or {}),
        "not_covered": not_covered(config),
        "notes": [*notes, *remarks],
    }


def spent_of(privacy: Mapping[str, Any]) -> str:
    """The figures of what was spent, in words, rounded up.

    Args:
        privacy: the report's section.
    """
    epsilon, delta, mu = (privacy.get(name) for name in ("epsilon_max", "delta", "mu"))
    line = f"epsilon {rounded_up(epsilon or 0.0)}"
    line += "" if delta is None else f" at delta {delta:g}"
    return line + ("" if mu is None else f", mu {rounded_up(mu)} of Gaussian DP")


def neighbours(settings: Privacy) -> str:
    """What may differ between two data sets that what is released hardly tells apart."""
    if settings.by_client:
        return "one client's update taken away (zero-out), the number of clients public"
    if settings.protects_counts:
        return "one training example added or removed, the number of examples protected too"
    return "one example's contribution taken away (zero-out), the number of examples public"


def not_covered(config: Config) -> list[str]:
    """What a private run's epsilon says nothing of: public rows, personal models, diagnostics."""
    data, named = config.data, ["the public examples"]
    if data.public_clients:
        named = [f"all examples of {data.public_clients} clients (data.public_clients)"]
    elif data.public_from_clients and takes_from_clients(config):
        share = f"{100 * data.public_fraction:g} % of the clients' examples"
        named = [f"{share}, which are public (data.public_from_clients)"]
    elif not data.public_fraction and data.partition.name != "devices":
        named = []
    named.append(
        "personal models that stay with their clients, where they are trained without noise"
    )
    if config.privacy.by_example and task_named(config.task)[0].predicts_text:
        named.append("a document or a person as a whole, of whom each text is protected by itself")
    if config.evaluation.diagnostics:
        named.append("results and losses, which were sent as they are (evaluation.diagnostics)")
    return named


def _other_metrics(
    task: type[Task], results: Sequence[ClientResult]
) -> dict[str, dict[str, float | None]]:
    """Each metric's mean over clients by mode, and beside it what it is of all their examples, for
    those that are told so."""
    found, (headline, _) = {}, task.headline()
    for name, metric in task.metrics.items():
        if name != headline:
            found[name] = {mode: metrics.mean(results, metric, mode) for mode in task.modes()}
        if metric.pools:
            together = {mode: metrics.pooled(results, metric, mode) for mode in task.modes()}
            found[f"{name}_pooled"] = together
    return found


def select_round(
    evaluations: Mapping[int, Sequence[ClientResult]], select: str, metric: Metric
) -> tuple[int | None, str]:
    """The round to report, never chosen on test, and how it was chosen.

    "validation" takes the (earliest) best mean of ``metric`` of the personal model, over
    the clients that every evaluation scored: one that a weak client missed would look better.
    Without such clients the last evaluation is taken. None where there was no evaluation.
    """
    rounds = sorted(round for round, results in evaluations.items() if results)
    if not rounds:
        return None, "last"
    if select == "validation":
        scored = [
            {r.client for r in evaluations[round] if r.val.n and "personal" in r.val.modes}
            for round in rounds
        ]
        common = set.intersection(*scored)
        if common:
            means = {}
            for round in rounds:
                of_common = [r for r in evaluations[round] if r.client in common]
                value = metrics.mean(of_common, metric, "personal", "val")
                if value is not None:
                    means[round] = value if metric.better == "higher" else -value
            if means:
                return max(means, key=means.__getitem__), "validation"
    return rounds[-1], "last"


def environment(gpus_per_node: float) -> dict[str, Any]:
    """Versions of the main packages, what the nodes computed on, and the cores we may use.

    Args:
        gpus_per_node: the setting; see ``device_name``.
    """
    from fedpers.compute import cores, device_name

    versions: dict[str, str | None] = {"fedpers": fedpers.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "device": device_name(gpus_per_node),
        "cores": cores(),
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """The headline of a report, a row a mode that the run has."""
    headline, metric, unit = headline_of(report)
    title = f"{report['run_id']}: test {metric.label}{in_unit(metric, unit)}"
    table = Table(title=f"{title}, round {report['selected_round']}")
    columns = ("mean", "weighted", "worst_decile", "std", "min", "max")
    titles = {"worst_decile": "worst decile", "std": "spread (std)"}
    table.add_column("model")
    for name in columns:
        table.add_column(titles.get(name, name), justify="right")
    for mode in MODES:
        summary = report[headline].get(mode)
        if summary is not None:
            table.add_row(mode, *(value_text(metric, summary[name]) for name in columns))
    return table


def _named(what: str, given: Mapping[str, float], names: Sequence[str]) -> dict[str, float | None]:
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"{what}: got {', '.join(unknown)}, takes {', '.join(names)}")
    return {name: given.get(name) for name in names}
