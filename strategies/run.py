"""A run: a Flower strategy that takes a method through its rounds."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpers.channels.base import Opening, State
from fedpers.channels.wire import Answers
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import ClientResult, choose, gated
from fedpers.evaluation.metrics import mean
from fedpers.evaluation.report import privacy_figures, spent_of
from fedpers.models.build import remark
from fedpers.records import in_the_clear, pack
from strategies.base import PersonalizedStrategy, strategies
from strategies.budgets import Budgets
from strategies.checkpoint import save_checkpoint
from strategies.exchange import collect, group_of, results_of, send_and_receive
from strategies.files import CHECKPOINT, RunFiles
from strategies.hopeless import hopeless
from strategies.pooling import Pools
from strategies.post import Post
from strategies.roster import Roster, natural_order
from strategies.round import Round
from strategies.signal import SignalToNoise

log = logging.getLogger("fedpers")

PATIENCE = 3  # rounds in a row of which nothing is used, until the run ends
NEWCOMER_BATCHES = (0, 1, 5, 20)  # cold start: how many local batches a newcomer trains on

Evaluator = Callable[[int, ArrayRecord], MetricRecord | None]


class Run(Strategy):
    """The rounds of a run, as Flower's strategies have them.

    Attributes:
        method: what is run; its channel is what its updates pass through.
        roster: who hosts whom.
        budgets: of the clients.
        signal: whether there is anything but noise in what private clients send.
        round: the last one.
        results, unscored: of the last evaluation, and why clients are missing from it.
        evaluates_global: what was sent to be evaluated last was the same for all.
        skipped: rounds in a row of which nothing was used, and
        unused: why.
    """

    def __init__(self, method: PersonalizedStrategy) -> None:
        self.method, self.config, self.channel = method, method.config, method.channel
        # Devices are strangers to each other: none of them speaks for others.
        self.roster = Roster.of(self.config)
        self.budgets, self.signal = Budgets(), SignalToNoise()
        self.post = Post(method, self.roster)
        self.pools = Pools(method, self.roster, self.budgets)
        method.ask, method.pools = self.post.ask_clients, self.pools
        self.round = Round(0, method, self.roster, self.post, self.budgets, self.signal)
        self.results: list[ClientResult] = []
        self.unscored: dict[str, str] = {}
        self.evaluates_global = True
        self.last_round = self.skipped = 0
        self.unused: str | None = None
        self._asked: dict[str, list[str]] = {}  # of the evaluation, by message's group

    # -- one round ----------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round (``arrays`` is not used)."""
        self.post.grid = grid
        parts = (self.method, self.roster, self.post, self.budgets, self.signal)
        self.round = Round(server_round, *parts)
        return self.round.ask()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What came of it. With fewer updates than ``strategy.min_clients`` nothing is mixed, and
        the run goes on.

        Raises:
            RunError: that is so for the third time in a row, or in every round.
        """
        self.unused, mixed = None, self.round.take(replies)
        if self.round.over:
            return None, MetricRecord({"answered": 0})
        if not mixed:
            return None, self._skip()
        self.skipped, reports = 0, self.round.reports.values()
        losses = [report["loss"] for report in reports if report.get("loss") is not None]
        loss = {"loss": sum(losses) / len(losses)} if losses else {}
        return None, MetricRecord({"answered": len(reports), **loss})

    def _skip(self) -> MetricRecord:
        """Nothing of a round is used; that may be so twice in a row."""
        answers, cohort = self.round.answers, set(self.round.reports)
        cohort -= set(answers.failures)
        self.skipped += 1
        least, reason = self.config.strategy.min_clients, self.round.unused
        if reason is None:
            few = f"{len(cohort)} of at least {least} clients are left"
            client, why = next(iter(answers.failures.items()), ("none", "nobody was selected"))
            reason = f"{few if cohort else 'no client is left'}; client {client}: {why}"
        self.unused = f"round {self.round.number}: {reason}"
        if self.skipped >= min(PATIENCE, self.config.rounds):
            raise RunError(self.unused)
        log.warning("%s: nothing is mixed", self.unused)
        return MetricRecord({"answered": len(cohort), "skipped": 1})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node: all clients are evaluated, selected or not."""
        if not self.ends_with(server_round) and server_round % self.config.evaluation.every:
            return []
        self.post.grid = grid
        messages, self._asked = self._to_evaluate("evaluate", server_round, self.roster.clients)
        return messages

    def _to_evaluate(
        self, kind: str, server_round: int, clients: list[str], **body: Any
    ) -> tuple[list[Message], dict[str, list[str]]]:
        hosts = self.roster.by_node(clients)
        in_order = [client for hosted in hosts.values() for client in hosted]
        received = {c: self.method.broadcast_to_evaluate(server_round, c) for c in in_order}
        self.evaluates_global = self.method.common(received)
        common = self.evaluates_global
        return self.post.messages(kind, server_round, received, common=common, **body)

    def ends_with(self, server_round: int) -> bool:
        """Whether a round is the last: by the settings, or as too few have budget left."""
        least, there = self.config.strategy.min_clients, self.roster.clients
        nothing_left = len(there) >= least > len(self.budgets.left(there))
        return server_round == self.config.rounds or nothing_left

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep every client's result; the metrics are unweighted means over clients."""
        answers = collect(replies, self._asked, group_of)
        self.unscored, task = answers.failures, self.method.task
        found, missing = results_of(answers, self._asked, task.tally_type)
        self.unscored |= {c: why for c, why in missing.items() if c not in self.unscored}
        for client, reason in self.unscored.items():
            log.warning("round %d: client %s not evaluated: %s", server_round, client, reason)
        self.results = gated([found[c] for c in self.roster.clients if c in found])
        means: dict[str, MetricRecordValues] = {}
        for mode in ("personal", "global", "gated"):
            value = mean(self.results, task.headline()[1], mode)
            if value is not None:
                means[mode] = value
        return MetricRecord(means) if means else None

    def summary(self) -> None:
        """Log what is about to run."""
        layouts, privacy = self.method.layouts, self.config.privacy
        size = ", ".join(f"{name} {layout.size:,}" for name, layout in layouts.items())
        name, clients = strategies.name_of(type(self.method)), len(self.roster.clients)
        log.info("%s: %d clients; shared scalars: %s", name, clients, size or "none")
        if about := self.method.task.about:
            log.info("%s", about)
        for said in (self.method.schema.scaling.about, self.method.remark, remark(self.config)):
            if said:
                log.info("%s", said)
        if privacy.enabled and privacy.deterministic_for_tests:
            log.warning("privacy: the noise is drawn from the run's seed: nobody is protected")

    # -- all of them --------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluator | None = None,
    ) -> Result:
        """Run all rounds in a fresh folder, as Flower's strategies do; see ``rounds``.

        What the settings do not say can be given here: ``num_rounds`` (``rounds``) and
        ``timeout`` (``round_timeout``, seconds). The parts start as the model has them.
        """
        if num_rounds is not None:
            self.config.rounds = num_rounds
        if timeout is not None:
            self.config.round_timeout = timeout
        files = RunFiles(self.config)
        with closing(files.folder):
            return self.rounds(grid, files, evaluate_fn)

    def rounds(self, grid: Grid, files: RunFiles, evaluate_fn: Evaluator | None = None) -> Result:
        """Wait for the nodes, run every round, evaluate, write the report.

        Raises:
            FedpersError: a node refuses the run as configured.
            RunError: too few nodes came, or too few answered in several rounds. Or, with all files
                written, nothing was mixed in the last round, or nobody could be evaluated after it.
        """
        config, result, least = self.config, Result(), self.config.strategy.min_clients
        arrays, settings, timeout = ArrayRecord(), ConfigRecord(), self.config.round_timeout
        self.post.grid, self.post.run_folder = grid, str(files.folder.path)
        enquiry = pack([], self.post.header())
        if self.post.base is not None:
            self.roster.base = pack([self.post.base], self.post.header())
        self.roster.wait(grid, enquiry, least=least, timeout=timeout)
        state = Path(config.state) if config.state else files.folder.path / "state"
        clients, said = len(self.roster.clients), self.roster.said
        self.channel.open(Opening(self.post, clients, said, state, files.resumed))
        self.roster.admits = self.channel.admits
        self.summary()
        tally, first = self.method.task.tally_type, 1
        if files.resumed:
            first = files.restore(self.load_state, tally) + 1
        self.pools.open(self.post, state, files.resumed)
        if config.model.whiten == "sums" and not files.resumed:
            self.method.known |= files.keep_known(self.pools.whitening())
        if first > config.rounds:
            takes = f"more than the {first - 1} that the run has had"
            raise ConfigError("rounds", config.rounds, takes, "set rounds to go on")
        for server_round in range(first, config.rounds + 1):
            if server_round > first:
                self.roster.gather(grid, enquiry, least=least, timeout=timeout)
            started = time.perf_counter()
            messages = list(self.configure_train(server_round, arrays, settings, grid))
            replies = send_and_receive(grid, messages, timeout, f"round {server_round}")
            _, metrics = self.aggregate_train(server_round, replies)
            assert metrics is not None
            result.train_metrics_clientapp[server_round] = metrics
            answered = int(metrics["answered"])  # type: ignore[arg-type]
            files.trained(server_round, self.round.answers, answered, messages, started)
            files.told(self.round.reports)

            self.last_round, last = server_round, self.ends_with(server_round)
            if last:
                self.pools.server_round = server_round
                self.method.settle(server_round)
            if last and config.evaluation.local_baseline:
                log.info("training a model on each client alone, to compare with")
                self._each_node("train.baseline", config.rounds, self.roster.clients)
            started = time.perf_counter()
            messages = list(self.configure_evaluate(server_round, arrays, settings, grid))
            scores = None
            if messages:
                replies = send_and_receive(grid, messages, timeout, "evaluation")
                scores = self.aggregate_evaluate(server_round, replies)
                files.evaluated(server_round, self.results, self.unscored, started)
                parts = self.method.parts if self.evaluates_global else None
                files.keep_global(server_round, parts)
                if scores is not None:
                    result.evaluate_metrics_clientapp[server_round] = scores
            if evaluate_fn is not None and (own := evaluate_fn(server_round, self.to_arrays())):
                result.evaluate_metrics_serverapp[server_round] = own
            spent = [account["epsilon"] for account in self.spending().values()]
            figures = {**(scores or {}), **({"epsilon": max(spent)} if spent else {})}
            files.round_over(server_round, self.round.answers, dict(metrics), figures)
            headline = self.method.task.headline()[1]
            shares = headline.better == "higher" and headline.unit == "share"
            if line := hopeless(server_round, {**metrics, **(scores or {})}, shares=shares):
                log.warning("%s", line)
            save_checkpoint(files.folder.path / CHECKPOINT, server_round, self.state())
            if last:
                break
        failed = self.failure()
        report = self._report(files, failed)
        if config.evaluation.adapters:
            scored = files.evaluations.get(report["selected_round"], [])
            self._export_adapters(report, scored)
        result.arrays = self.to_arrays()
        self.channel.close()
        if failed is not None:
            raise RunError(f"{failed}; what there is of the run is in {files.folder.path}")
        return result

    def state(self) -> State:
        """What a checkpoint holds: of the method, of its channel, and of the run."""
        (groups, values), (more, kept) = self.method.state(), self.channel.state()
        own = {
            "spent": sorted(self.budgets.spent),
            "spending": self.budgets.spending,
            "noise": self.signal.variance,
            "last_round": self.last_round,
        }
        signal = {"signal": self.signal.moved}
        return {**groups, **more, **signal}, {**values, "channel": kept, "run": own}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` returned."""
        groups, values = state
        own = values["run"]
        self.channel.load_state(groups, values["channel"])
        self.method.load_state(state)
        self.signal.moved = in_the_clear(groups["signal"])
        self.budgets.spent, self.budgets.spending = set(own["spent"]), dict(own["spending"])
        self.signal.variance, self.last_round = own["noise"], own["last_round"]

    def failure(self) -> str | None:
        """After the last evaluation: why the run has failed although it has come to its end."""
        if self.unused is not None:
            return f"{self.unused}: nothing was mixed in the last round"
        asked = {client for clients in self._asked.values() for client in clients}
        if asked and asked <= set(self.unscored):
            first = min(asked, key=natural_order)
            reason = f"client {first}: {self.unscored[first]}"
            return f"round {self.last_round}: no client was evaluated; {reason}"
        return None

    def spending(self) -> Mapping[str, Mapping[str, Any]]:
        """What was spent so far of each privacy budget: the clients', or the channel's own."""
        return self.channel.spending() or self.budgets.spending

    def to_arrays(self) -> ArrayRecord:
        """The global parts as a Flower record: an array [1, size] a part."""
        return pack([self.method.parts], {}).array_records["parts"]

    def _report(self, files: RunFiles, failed: str | None) -> dict[str, Any]:
        privacy, task = None, self.method.task
        if self.config.privacy.enabled:
            signal, spent = self.signal, self.spending()
            said = (signal.ratios(), signal.notes(), self.channel.notes())
            privacy = privacy_figures(self.config, spent, *said)
            log.info("privacy: at most %s", spent_of(privacy))
            for note in privacy["notes"]:
                log.warning("privacy: %s", note)
        return files.report(
            failed,
            moment=self.roster.scored,
            newcomers=self._newcomers(),
            names=task.names,
            unit=task.unit,
            inputs=self.method.schema.scaling,
            privacy=privacy,
            similarity=self.method.similarity,
            **self.channel.figures(),
        )

    def _newcomers(self) -> dict[int, list[ClientResult]]:
        """Have clients that never trained personalise what they are given, by number of batches."""
        clients = self.roster.newcomers
        if not clients:
            return {}
        kind, rounds, batches = "evaluate.newcomers", self.config.rounds, NEWCOMER_BATCHES
        messages, _ = self._to_evaluate(kind, rounds, clients, batches=batches)
        answers = collect(self.post.send(messages), self.roster.by_node(clients))
        for client, reason in answers.failures.items():
            log.warning("newcomer %s not evaluated: %s", client, reason)
        found: dict[int, list[ClientResult]] = defaultdict(list)
        for node, body in answers.bodies.items():
            asked = {node: self.roster.by_node(clients).get(node, [])}
            for count in NEWCOMER_BATCHES:
                given = body.get("results")
                each = {"results": given.get(str(count), []) if isinstance(given, dict) else None}
                answered = Answers(bodies={node: each})
                results, missing = results_of(answered, asked, self.method.task.tally_type)
                found[count] += results.values()
                for client, reason in missing.items():
                    log.warning("newcomer %s after %d batches: %s", client, count, reason)
        return dict(found)

    def _export_adapters(self, report: dict[str, Any], scored: list[ClientResult]) -> None:
        """Have every client save, on its own machine, the model that the report scores.

        Args:
            scored: the results of the round that the report takes.
        """
        chosen, results = choose(scored), {result.client: result for result in scored}
        comparable = {result.client for result in scored if "gated" in result.test.modes}
        server_round = report["selected_round"] or self.last_round
        manifests = {
            client: {
                "run_id": report["run_id"],
                "task": asdict(self.method.schema.task),
                "inputs": asdict(self.method.schema.scaling),
                "round": server_round,
                "test": results[client].test.brief().to_json() if client in results else None,
                "gate": chosen[client] if client in comparable else None,
                "epsilon": self.budgets.spending.get(client, {}).get("epsilon"),
            }
            for client in self.roster.clients
        }
        self._each_node("query.export", server_round, list(manifests), manifests=manifests)

    def _each_node(self, kind: str, server_round: int, clients: list[str], **body: Any) -> None:
        answers = self.post.each_node(kind, server_round, clients, **body)
        for client, reason in answers.failures.items():
            log.warning("%s: client %s: %s", kind, client, reason)
