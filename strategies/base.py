"""The server side of a method: who takes part, what each receives, how updates are mixed."""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from math import ceil
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpers.config import Config
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import gated
from fedpers.evaluation.metrics import mean
from fedpers.privacy import BudgetSpent
from fedpers.records import Row, pack
from fedpers.registry import Registry
from fedpers.streaming import StreamingMean
from strategies.exchange import (
    NOTHING,
    Answers,
    collect,
    group_of,
    read_each,
    reports_of,
    results_of,
    spending_of,
    unusable,
)
from strategies.method import Method
from strategies.mixing import Mixing
from strategies.roster import natural_order
from strategies.rounds import RunFiles, run_rounds
from strategies.sealing import plain

__all__ = ["Mixing", "PersonalizedStrategy", "find_strategy", "strategies"]

log = logging.getLogger("fedpers")

PATIENCE = 3  # rounds in a row of which nothing is used, until the run ends
REPLY = 64 * 2**20  # bytes of updates in one reply, at most; but
FEWEST = 64  # clients a message at least, where a node has as many
# A method with one of these of its own may look at single updates.
HOOKS = ("mixing", "combine", "_mix", "refine", "aggregate_train")

strategies: Registry[type[PersonalizedStrategy]] = Registry(
    "strategy", key="strategy.name", package="strategies.methods", group="fedpers.strategies"
)


class PersonalizedStrategy(Method, Strategy):
    """A Flower strategy whose clients each get what is theirs.

    A round: ``select`` -> ``broadcast`` -> local training -> Y = W X with W from ``mixing`` ->
    ``refine``. A method overrides one or two of these, which are in ``strategies.method``; the
    messages and the failures are here.
    """

    # -- one round ----------------------------------------------------------------------------

    @property
    def eligible(self) -> list[str]:
        """The clients that may still train: those whose privacy budget is not spent."""
        return [client for client in self.roster.clients if client not in self.spent]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message or more for each node that hosts a selected client (``arrays`` is not used).

        None while fewer than ``strategy.min_clients`` are there: what they would release, and
        pay for, would not be used.
        """
        self._asked, self.short = {}, len(self.eligible) < self.config.strategy.min_clients
        if self.sealing is not None:
            self.sealing.turn(server_round)
        if self.short:
            return []
        cohort = self.select(server_round, self.eligible)
        if self.client_level is not None:  # charged before anything is released
            if self.sealing is not None:
                self.sealing.check_noise(self.client_level, len(cohort))
            try:
                self.client_level.charge()
            except BudgetSpent as error:
                log.warning("round %d: %s", server_round, error)
                self.spent.update(self.roster.clients)  # one account, for all
                return []
        return self.messages("train", server_round, cohort)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Mix the updates that came, leave out those that are broken, refine.

        With fewer than ``strategy.min_clients`` of them nothing is mixed, and the run goes on.

        Raises:
            RunError: that is so for the third time in a row, or in every round.
        """
        mean, self.unused = None, None
        if self.streams:
            mean = StreamingMean(self.layouts, len(self.asked), self._log_product_error)
        reports = self._take_up(replies, mean)
        answers = self.answers
        for group, body in answers.bodies.items():
            spent = body.get("spent")
            spent = spent if isinstance(spent, Mapping) else {}
            for client in set(self._asked[group]) & set(spent):
                self.spent.add(client)
                self.spending.update(spending_of(client, spent[client]))
        # In the roster's order, so that sums do not depend on who answered first.
        trained = set(reports) - set(answers.failures)
        cohort = [client for client in self.roster.clients if client in trained]
        asked = set(self.asked)
        nothing_left = bool(self.roster.clients) and not self.eligible
        if not cohort and (nothing_left or (asked and asked <= self.spent)):  # others may go on
            return None, MetricRecord({"answered": 0})
        in_order = {client: reports[client] for client in cohort}
        for client, report in in_order.items():
            self.spending.update(spending_of(client, report))
        mixed = len(cohort) >= self.least
        if mixed and mean is not None:
            before, self.parts = plain(self.parts), mean.result()
            if not self.rows:  # all received the same parts
                mixing = self.mixing(server_round, in_order)
                self._note_signal(server_round, before, mixing, in_order)
        elif mixed and self.shares:
            mixed = self._mix(server_round, in_order)
        answers.failures |= dict.fromkeys(self.roster.absent, "its node is not there")
        for client, reason in answers.failures.items():
            log.warning("round %d: client %s left out: %s", server_round, client, reason)
        if not mixed or self.unused:
            return None, self._skip(server_round, set(cohort) - set(answers.failures))
        self.skipped = 0
        self.refine(server_round)
        losses = [r["loss"] for r in in_order.values() if r.get("loss") is not None]
        loss = {"loss": sum(losses) / len(losses)} if losses else {}
        return None, MetricRecord({"answered": len(cohort), **loss})

    @property
    def streams(self) -> bool:
        """Whether updates are added up as they come, so that they are never there all at once.

        So it is for a mean of plain updates of which nobody looks at a single one.
        """
        own = any(
            getattr(getattr(self, name), "__func__", None)
            is not getattr(PersonalizedStrategy, name)
            for name in HOOKS
        )
        in_the_clear = self.sealing is None and self.client_level is None
        mean = self.config.strategy.combine == "mean" and self.reads_updates(self.params) is None
        return bool(self.shares) and in_the_clear and mean and not own

    def _take_up(
        self, replies: Iterable[Message], mean: StreamingMean | None
    ) -> dict[str, Mapping[str, Any]]:
        """Read each reply as it comes, leave out what cannot be used, add the rest to ``mean``.

        Returns:
            The reports that can be read.
        """
        self.answers, reports = Answers(), dict[str, Mapping[str, Any]]()
        later = self.sealing is not None and not self.sealing.at_once
        judge = None if later or not self.shares else self.refused
        # In the roster's order, so that sums do not depend on who is where.
        place = {client: k for k, client in enumerate(sorted(self.asked, key=natural_order))}
        for came in read_each(replies, self._asked, group_of):
            reports |= (told := reports_of(came, self._asked))
            came.leave_out(unusable(came, self._asked, told, judge))
            if mean is not None:
                for client in came.failures:
                    mean.leave_out(place[client])
                for client in list(came.rows):
                    weight = 1.0 if self.weights == "equal" else float(told[client]["examples"])
                    mean.add(place[client], weight, plain(came.rows.pop(client)))
            self.answers.merge(came)
        self.answers.complete = time.perf_counter()
        silent = set(place) - set(reports) - set(self.answers.failures)
        self.answers.leave_out(dict.fromkeys(sorted(silent, key=natural_order), NOTHING))
        return reports

    def _skip(self, server_round: int, cohort: Collection[str]) -> MetricRecord:
        """Nothing of a round is used; that may be so twice in a row."""
        self.skipped += 1
        least, reason = self.config.strategy.min_clients, self.unused
        if reason is None:
            few = f"{len(cohort)} of at least {least} clients are left"
            client, why = next(iter(self.answers.failures.items()), ("none", "nobody was selected"))
            reason = f"{few if cohort else 'no client is left'}; client {client}: {why}"
        self.unused = f"round {server_round}: {reason}"
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
        return self.messages("evaluate", server_round, self.roster.clients)

    def ends_with(self, server_round: int) -> bool:
        """Whether a round is the last: by the settings, or as too few have budget left."""
        least = self.config.strategy.min_clients
        nothing_left = len(self.roster.clients) >= least > len(self.eligible)
        return server_round == self.config.rounds or nothing_left

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Keep every client's result; the metrics are unweighted means over clients."""
        answers = collect(replies, self._asked, group_of)
        self.unscored = answers.failures
        found, missing = results_of(answers, self._asked, self.task.tally_type)
        self.unscored |= {c: why for c, why in missing.items() if c not in self.unscored}
        for client, reason in self.unscored.items():
            log.warning("round %d: client %s not evaluated: %s", server_round, client, reason)
        self.results = gated([found[c] for c in self.roster.clients if c in found])
        means: dict[str, MetricRecordValues] = {}
        for mode in ("personal", "global", "gated"):
            value = mean(self.results, self.task.headline()[1], mode)
            if value is not None:
                means[mode] = value
        return MetricRecord(means) if means else None

    def summary(self) -> None:
        """Log what is about to run."""
        size = ", ".join(f"{name} {layout.size:,}" for name, layout in self.layouts.items())
        name = strategies.name_of(type(self))
        log.info(
            "%s: %d clients; shared scalars: %s", name, len(self.roster.clients), size or "none"
        )
        if about := self.task.about:
            log.info("%s", about)
        if self.config.privacy.enabled and self.config.privacy.deterministic_for_tests:
            log.warning("privacy: the noise is drawn from the run's seed: nobody is protected")

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds, as Flower's strategies do; see ``strategies.rounds``.

        What the settings do not say can be given here: ``num_rounds`` (``rounds``) and
        ``timeout`` (``round_timeout``, seconds). The parts start as the model has them.
        """
        if num_rounds is not None:
            self.config.rounds = num_rounds
        if timeout is not None:
            self.config.round_timeout = timeout
        files = RunFiles(self.config)
        with closing(files.folder):
            return run_rounds(self, grid, files, evaluate_fn)

    # -- messages -----------------------------------------------------------------------------

    @classmethod
    def client_side(cls) -> str:
        """The name of the client's algorithm: ``algorithm``, or that of the nearest registered
        strategy that this one derives from."""
        if cls.algorithm is not None:
            return cls.algorithm
        names = (strategies.name_of(base) for base in cls.__mro__)
        return next((name for name in names if ":" not in name), "fedavg")

    def header(self) -> dict[str, Any]:
        """What every message says about the run."""
        return {
            "settings": self.config.to_json(),
            "algorithm": self.client_side(),
            "server_params": self.param_names(),
            "run_folder": self.run_folder,
            "base": self.base_digest,
            "schema": self.schema.to_json(),
            **({} if self.sealing is None else {"sealing": self.sealing.header()}),
        }

    def messages(
        self, kind: str, server_round: int, clients: Sequence[str], **body: Any
    ) -> list[Message]:
        """Messages for the nodes that host any of ``clients``, with what each client is to receive:
        one a node, or as many as keep replies small.

        Parts that several clients of a message receive are sent once.
        """
        broadcast = self.broadcast if kind == "train" else self.broadcast_to_evaluate
        hosts = self.roster.by_node(clients)
        if kind == "train" and self.sealing is None:
            asked = self._split(hosts)
        else:
            asked = list(hosts.items())
        self._asked = {f"{server_round}/{k}": some for k, (_, some) in enumerate(asked)}
        weights: dict[str, float] = {}
        if kind == "train" and self.sealing is not None:
            weights = self.sealing.foresee(self.asked)
        made, header, last = list[Message](), self.header(), list[Row]()
        received = {c: broadcast(server_round, c) for _, some in asked for c in some}
        if kind == "train":
            self.sent |= received
        else:
            body["common"] = self.evaluates_global = self.common(received)
        for group, (node, some) in zip(self._asked, asked, strict=True):
            rows: list[Row] = []
            row_of: dict[str, int] = {}
            place: dict[int, int] = {}
            for client in some:
                parts = received[client]
                if id(parts) not in place:
                    place[id(parts)] = len(rows)
                    rows.append(parts)
                row_of[client] = place[id(parts)]
            head = {**header, "round": server_round, "clients": some, "rows": row_of}
            if weights:  # each node is told its own clients'
                head["weights"] = {client: weights[client] for client in some}
            content = pack(rows, {**head, **body})
            if made and len(rows) == len(last) and all(map(operator.is_, rows, last)):
                content["parts"] = made[-1].content["parts"]  # the same bytes, in memory once
            last = rows
            made.append(Message(content, dst_node_id=node, message_type=kind, group_id=group))
        return made

    def _split(self, hosts: Mapping[int, list[str]]) -> list[tuple[int, list[str]]]:
        """Each message's node and clients, for replies of ``REPLY`` bytes at most.

        In the roster's order, and all nodes in as many pieces: blocks of the mean are then complete
        early.
        """
        update = sum(layout.size * layout.dtype.itemsize for layout in self.layouts.values())
        most = max(FEWEST, REPLY // max(update, 1))
        pieces = max((ceil(len(hosted) / most) for hosted in hosts.values()), default=1)
        if pieces == 1:
            return list(hosts.items())
        split = []
        for node, hosted in hosts.items():
            in_order = sorted(hosted, key=natural_order)
            count = max(FEWEST, ceil(len(hosted) / pieces))
            split += [(node, in_order[k : k + count]) for k in range(0, len(hosted), count)]
        return split


def find_strategy(config: Config) -> type[PersonalizedStrategy]:
    """The strategy that ``strategy.name`` names.

    Raises:
        ConfigError: no such strategy.
    """
    strategy = strategies.get(config.strategy.name)
    if not (isinstance(strategy, type) and issubclass(strategy, PersonalizedStrategy)):
        takes = "a subclass of strategies.base.PersonalizedStrategy"
        raise ConfigError("strategy.name", config.strategy.name, takes)
    return strategy
