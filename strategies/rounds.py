"""The rounds of a run, on one screen, and the files that they leave."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedpers.config import Config
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import (
    ClientResult,
    RunFolder,
    build_report,
    choose,
    new_run_id,
    write_html,
)
from fedpers.evaluation.report import privacy_figures, select_round, spent_of
from fedpers.evaluation.shown import with_unit
from fedpers.files import flush, written
from fedpers.parts import Parts
from fedpers.records import Row, pack
from fedpers.tasks.base import task_named
from strategies.checkpoint import load_checkpoint, save_checkpoint
from strategies.exchange import Answers, collect, send_and_receive
from strategies.roster import natural_order

if TYPE_CHECKING:
    from strategies.base import PersonalizedStrategy

log = logging.getLogger("fedpers")

CHECKPOINT = "checkpoint"
GLOBAL = "global.safetensors"
NEWCOMER_BATCHES = (0, 1, 5, 20)  # cold start: how many local batches a newcomer trains on

Evaluator = Callable[[int, ArrayRecord], MetricRecord | None]


def run_rounds(
    strategy: PersonalizedStrategy,
    grid: Grid,
    files: RunFiles,
    evaluate_fn: Evaluator | None = None,
) -> Result:
    """Wait for the nodes, run every round, evaluate, write the report.

    Raises:
        FedpersError: a node refuses the run as configured.
        RunError: too few nodes came, or too few answered in several rounds. Or, with all files
            written, nothing was mixed in the last round, or nobody could be evaluated after it.
    """
    config, result = strategy.config, Result()
    arrays, settings = ArrayRecord(), ConfigRecord()
    strategy.run_folder = str(files.folder.path)
    timeout = config.round_timeout
    enquiry = pack([], strategy.header())
    if strategy.base is not None:
        strategy.roster.base = pack([strategy.base], strategy.header())
    least = config.strategy.min_clients
    strategy.roster.wait(grid, enquiry, least=least, timeout=timeout)
    if strategy.sealing is not None:
        strategy.sealing.open(grid, strategy.roster.keys)
    if strategy.client_level is not None:
        state = Path(config.state) if config.state else files.folder.path / "state"
        population = len(strategy.roster.clients)
        strategy.client_level.open(population, state / "ledgers", resumed=files.resumed)
    strategy.summary()
    first = files.restore(strategy) + 1 if files.resumed else 1
    if first > config.rounds:
        takes = f"more than the {first - 1} that the run has had"
        raise ConfigError("rounds", config.rounds, takes, "set rounds to go on")
    for server_round in range(first, config.rounds + 1):
        if server_round > first:
            strategy.roster.gather(grid, enquiry, least=least, timeout=timeout)
        started = time.perf_counter()
        messages = list(strategy.configure_train(server_round, arrays, settings, grid))
        replies = send_and_receive(grid, messages, timeout)
        _, metrics = strategy.aggregate_train(server_round, replies)
        assert metrics is not None
        result.train_metrics_clientapp[server_round] = metrics
        answered = int(metrics["answered"])  # type: ignore[arg-type]
        files.trained(server_round, strategy.answers, answered, messages, started)

        strategy.last_round, last = server_round, strategy.ends_with(server_round)
        if last and config.evaluation.local_baseline:
            train_baseline(strategy, grid)
        started = time.perf_counter()
        messages = list(strategy.configure_evaluate(server_round, arrays, settings, grid))
        scores = None
        if messages:
            replies = send_and_receive(grid, messages, timeout)
            scores = strategy.aggregate_evaluate(server_round, replies)
            files.evaluated(server_round, strategy.results, strategy.unscored, started)
            files.keep_global(server_round, strategy.parts if strategy.evaluates_global else None)
            if scores is not None:
                result.evaluate_metrics_clientapp[server_round] = scores
        if evaluate_fn is not None and (own := evaluate_fn(server_round, to_arrays(strategy))):
            result.evaluate_metrics_serverapp[server_round] = own
        spent = [account["epsilon"] for account in spending(strategy).values()]
        figures = {**(scores or {}), **({"epsilon": max(spent)} if spent else {})}
        files.round_over(server_round, strategy.answers, dict(metrics), figures)
        save_checkpoint(files.folder.path / CHECKPOINT, server_round, strategy.state())
        if last:
            break
    failed = failure(strategy)
    report = files.report(strategy, evaluate_newcomers(strategy, grid), failed)
    if config.evaluation.adapters:
        scored = files.evaluations.get(report["selected_round"], [])
        export_adapters(strategy, grid, report, scored)
    result.arrays = to_arrays(strategy)
    if strategy.sealing is not None:
        strategy.sealing.forget()
    if failed is not None:
        raise RunError(f"{failed}; what there is of the run is in {files.folder.path}")
    return result


def failure(strategy: PersonalizedStrategy) -> str | None:
    """After the last evaluation: why the run has failed although it has come to its end."""
    if strategy.unused is not None:
        return f"{strategy.unused}: nothing was mixed in the last round"
    if strategy.asked and set(strategy.asked) <= set(strategy.unscored):
        first = min(strategy.asked, key=natural_order)
        reason = f"client {first}: {strategy.unscored[first]}"
        return f"round {strategy.last_round}: no client was evaluated; {reason}"
    return None


def train_baseline(strategy: PersonalizedStrategy, grid: Grid) -> None:
    """Have every client train its local-only model, for as many epochs as the run had."""
    rounds, clients = strategy.config.rounds, strategy.roster.clients
    _each_node(strategy, grid, "train.baseline", rounds, clients, {})


def evaluate_newcomers(strategy: PersonalizedStrategy, grid: Grid) -> dict[int, list[ClientResult]]:
    """Have clients that never trained personalise what they are given, by number of batches."""
    clients = strategy.roster.newcomers
    if not clients:
        return {}
    rounds = strategy.config.rounds
    found: dict[int, list[ClientResult]] = defaultdict(list)
    messages = strategy.messages("evaluate.newcomers", rounds, clients, batches=NEWCOMER_BATCHES)
    replies = send_and_receive(grid, messages, strategy.config.round_timeout)
    answers = collect(replies, strategy.roster.by_node(clients))
    for client, reason in answers.failures.items():
        log.warning("newcomer %s not evaluated: %s", client, reason)
    for node, body in answers.bodies.items():
        try:
            for batches, results in body["results"].items():
                tally = strategy.task.tally_type
                found[int(batches)] += [ClientResult.from_json(r, tally) for r in results]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("newcomers of node %s: cannot be read (%s)", node, error)
    return dict(found)


def export_adapters(
    strategy: PersonalizedStrategy,
    grid: Grid,
    report: dict[str, Any],
    scored: list[ClientResult],
) -> None:
    """Have every client save, on its own machine, the model that the report scores.

    Args:
        scored: the results of the round that the report takes.
    """
    chosen, results = choose(scored), {result.client: result for result in scored}
    comparable = {result.client for result in scored if "gated" in result.test.modes}
    server_round = report["selected_round"] or strategy.last_round
    manifests = {
        client: {
            "run_id": report["run_id"],
            "task": asdict(strategy.schema.task),
            "round": server_round,
            "test": results[client].test.brief().to_json() if client in results else None,
            "gate": chosen[client] if client in comparable else None,
            "epsilon": strategy.spending.get(client, {}).get("epsilon"),
        }
        for client in strategy.roster.clients
    }
    body = {"manifests": manifests}
    _each_node(strategy, grid, "query.export", server_round, list(manifests), body)


def spending(strategy: PersonalizedStrategy) -> Mapping[str, Mapping[str, Any]]:
    """What was spent so far of each privacy budget: the clients', or the one for all of them."""
    if strategy.client_level is not None:
        return {"population": strategy.client_level.spending()}
    return strategy.spending


def to_arrays(strategy: PersonalizedStrategy) -> ArrayRecord:
    """The global parts as a Flower record: an array [1, size] a part."""
    return pack([strategy.parts], {}).array_records["parts"]


def _each_node(
    strategy: PersonalizedStrategy,
    grid: Grid,
    kind: str,
    server_round: int,
    clients: list[str],
    body: dict[str, Any],
) -> Answers:
    asked, header = strategy.roster.by_node(clients), strategy.header()
    messages = []
    for node, hosted in asked.items():
        head = {**header, "round": server_round, "clients": hosted, **body}
        messages.append(Message(pack([], head), dst_node_id=node, message_type=kind))
    replies = send_and_receive(grid, messages, strategy.config.round_timeout)
    answers = collect(replies, asked)
    for client, reason in answers.failures.items():
        log.warning("%s: client %s: %s", kind, client, reason)
    return answers


class RunFiles:
    """Times and bytes of a run, and the files of its folder."""

    def __init__(self, config: Config, path: Path | None = None, *, resume: bool = False) -> None:
        """Open a run's folder at ``path``, or a fresh one under ``output``.

        Args:
            resume: go on with the run that is in ``path``.
        """
        self.config, self.began, self.resumed = config, time.perf_counter(), resume
        self.headline = task_named(config.task)[0].headline()[1]
        path = path or Path(config.output).absolute() / new_run_id(config)
        self.folder = RunFolder(path, config, resume=resume)
        self.evaluations: dict[int, list[ClientResult]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.seconds = dict.fromkeys(("train", "combine", "encrypt", "decrypt", "evaluate"), 0.0)
        self.client_rounds = 0
        self._line: dict[str, Any] = {}

    def restore(self, strategy: PersonalizedStrategy) -> int:
        """Put the strategy where the last checkpoint left it, and take up the lines of the rounds
        up to there; returns that round."""
        done = load_checkpoint(self.folder.path / CHECKPOINT, strategy.load_state)
        lines, self.evaluations = self.folder.read(done, strategy.task.tally_type)
        for line in lines:
            self._add(line)
        log.info("resumed after round %d", done)
        return done

    def _add(self, line: dict[str, Any]) -> None:
        self.rounds.append(line)
        self.client_rounds += line["answered"]
        for stage, seconds in {**line["seconds"], **line["encryption_seconds"]}.items():
            if stage in self.seconds:
                self.seconds[stage] += seconds

    def trained(
        self,
        server_round: int,
        answers: Answers,
        answered: int,
        messages: list[Message],
        started: float,
    ) -> None:
        """Note a round's training: who answered, seconds and bytes."""
        now, came = time.perf_counter(), answers.complete
        down = sum(
            len(a.data)
            for m in messages
            for r in m.content.array_records.values()
            for a in r.values()
        )
        self._line = {
            "round": server_round,
            "answered": answered,
            "failed": dict(answers.failures),
            "seconds": {"train": came - started, "combine": now - came, "evaluate": 0.0},
            # Of the nodes' time within these.
            "encryption_seconds": {"encrypt": answers.encrypt, "decrypt": answers.decrypt},
            "uplink_bytes": answers.nbytes,
            "downlink_bytes": down,
        }
        if answers.failures:
            self.folder.log_clients(server_round, [], answers.failures)

    def evaluated(
        self,
        server_round: int,
        results: list[ClientResult],
        failures: dict[str, str],
        started: float,
    ) -> None:
        """Note an evaluation's results, and why clients are missing from it."""
        self._line["seconds"]["evaluate"] = time.perf_counter() - started
        self._line["failed"] |= failures
        self.evaluations[server_round] = list(results)
        self.folder.log_clients(server_round, results, failures)

    def keep_global(self, server_round: int, parts: Row | None) -> None:
        """Save the global parts, if the report would take this evaluation as things stand.

        A method without any has no file, nor has a server that can read none (encryption); None
        where clients were evaluated with what was made for them.
        """
        wanted = "last" if self.config.privacy.enabled else self.config.evaluation.select
        taken, _ = select_round(self.evaluations, wanted, self.headline)
        if taken not in (None, server_round):
            return
        path, temporary = self.folder.path / GLOBAL, self.folder.path / f".{GLOBAL}.tmp"
        if not isinstance(parts, Parts) or not parts:
            path.unlink(missing_ok=True)  # an earlier evaluation's
            return
        with written(path):
            parts.save(temporary)
            flush(temporary)
            os.replace(temporary, path)

    def round_over(
        self, server_round: int, answers: Answers, metrics: dict[str, Any], scores: dict[str, Any]
    ) -> None:
        """Write the round's line to ``rounds.jsonl`` and to the log."""
        told = {name: value for name, value in metrics.items() if name in ("loss", "skipped")}
        line = {**self._line, **told, **scores}
        self._add(line)
        self.folder.log_round(line)
        total = sum(line["seconds"].values())
        shown = [f"round {server_round}/{self.config.rounds}", f"{line['answered']} clients"]
        if line["failed"]:
            shown.append(f"{len(line['failed'])} failed")
        if "skipped" in line:
            shown.append("nothing mixed")
        if "loss" in line:
            shown.append(f"loss {line['loss']:.3f}")
        shown += [
            f"{mode} {with_unit(self.headline, scores[mode], '')}"
            for mode in ("personal", "global")
            if mode in scores
        ]
        log.info("  ".join([*shown, f"{total:.1f} s"]))

    def report(
        self,
        strategy: PersonalizedStrategy,
        newcomers: dict[int, list[ClientResult]],
        failed: str | None,
    ) -> dict[str, Any]:
        """Build and write ``report.json``, and the page."""
        up = sum(line["uplink_bytes"] for line in self.rounds)
        down = sum(line["downlink_bytes"] for line in self.rounds)
        each, privacy = max(self.client_rounds, 1), None
        if self.config.privacy.enabled:
            signal = strategy.signal
            spent = spending(strategy)
            privacy = privacy_figures(self.config, spent, signal.ratios(), signal.notes())
            log.info("privacy: at most %s", spent_of(privacy))
            for note in privacy["notes"]:
                log.warning("privacy: %s", note)
        report = build_report(
            run_id=self.folder.path.name,
            config=self.config,
            evaluations=self.evaluations,
            communication={
                "uplink_bytes_per_client_round": up // each,
                "downlink_bytes_per_client_round": down // each,
                "total_bytes": up + down,
            },
            seconds={
                "total": time.perf_counter() - self.began,
                "round_median": median(sum(r["seconds"].values()) for r in self.rounds),
                **self.seconds,
            },
            moment=strategy.roster.scored,
            newcomers=newcomers,
            names=strategy.task.names,
            unit=strategy.task.unit,
            privacy=privacy,
            encryption=strategy.sealing.figures() if strategy.sealing else None,
        )
        report["failed"] = failed
        if strategy.similarity is not None:
            report["similarity"] = strategy.similarity.tolist()
        self.folder.write_report(report)
        try:
            write_html(self.folder.path)
        except Exception as error:  # a picture of the run must not cost the run
            log.warning("report.html: %s", error)
        return report
