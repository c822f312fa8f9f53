"""The server side of a method: who takes part, what each receives, how updates are mixed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpers.config import Config
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import gated
from fedpers.evaluation.metrics import accuracy_summary
from fedpers.privacy import BudgetSpent
from fedpers.records import Row, pack
from fedpers.registry import Registry
from strategies.exchange import collect, reports_of, results_of, spending_of, unusable
from strategies.method import Method
from strategies.mixing import Mixing
from strategies.rounds import RunFiles, run_rounds

__all__ = ["Mixing", "PersonalizedStrategy", "find_strategy", "strategies"]

log = logging.getLogger("fedpers")

PATIENCE = 3  # rounds in a row of which nothing is used, until the run ends

strategies: Registry[type[PersonalizedStrategy]] = Registry(
    "strategy", key="strategy.name", package="strategies", group="fedpers.strategies"
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
        """One message for each node that hosts a selected client (``arrays`` is not used).

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
        self.answers = answers = collect(replies, self._asked)
        reports = reports_of(answers, self._asked)
        for node, body in answers.bodies.items():
            spent = body.get("spent")
            spent = spent if isinstance(spent, Mapping) else {}
            for client in set(self._asked[node]) & set(spent):
                self.spent.add(client)
                self.spending.update(spending_of(client, spent[client]))
        later = self.sealing is not None and not self.sealing.at_once
        judge = None if later or not self.shares else self.refused
        self._leave_out(unusable(answers, self._asked, reports, judge))
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
        enough = len(cohort) >= self.least
        mixed = enough and (not self.shares or self._mix(server_round, in_order))
        answers.failures |= dict.fromkeys(self.roster.absent, "its node is not there")
        for client, reason in answers.failures.items():
            log.warning("round %d: client %s left out: %s", server_round, client, reason)
        if not mixed:
            return None, self._skip(server_round, set(cohort) - set(answers.failures))
        self.skipped = 0
        self.refine(server_round)
        losses = [r["loss"] for r in in_order.values() if r.get("loss") is not None]
        loss = {"loss": sum(losses) / len(losses)} if losses else {}
        return None, MetricRecord({"answered": len(cohort), **loss})

    def _skip(self, server_round: int, cohort: Collection[str]) -> MetricRecord:
        """Nothing of a round is used; that may be so twice in a row."""
        self.skipped += 1
        least = self.config.strategy.min_clients
        left = (
            f"{len(cohort)} of at least {least} clients are left"
            if cohort
            else ("no client is left")
        )
        first = next(iter(self.answers.failures.items()), ("none", "nobody was selected"))
        line = f"round {server_round}: {left}; client {first[0]}: {first[1]}"
        if self.skipped >= min(PATIENCE, self.config.rounds):
            raise RunError(line)
        log.warning("%s: nothing is mixed", line)
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
        answers = collect(replies, self._asked)
        self.unscored = answers.failures
        found, missing = results_of(answers, self._asked)
        self.unscored |= {c: why for c, why in missing.items() if c not in self.unscored}
        for client, reason in self.unscored.items():
            log.warning("round %d: client %s not evaluated: %s", server_round, client, reason)
        self.results = gated([found[c] for c in self.roster.clients if c in found])
        means: dict[str, MetricRecordValues] = {}
        for mode in ("personal", "global", "gated"):
            summary = accuracy_summary(self.results, mode)
            if summary is not None:
                means[mode] = summary["mean"]
        return MetricRecord(means) if means else None

    def summary(self) -> None:
        """Log what is about to run."""
        size = ", ".join(f"{name} {layout.size:,}" for name, layout in self.layouts.items())
        name = strategies.name_of(type(self))
        log.info(
            "%s: %d clients; shared scalars: %s", name, len(self.roster.clients), size or "none"
        )

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
        return run_rounds(self, grid, RunFiles(self.config), evaluate_fn)

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
            "task": [self.task.kind, list(self.task.input_shape), self.task.num_classes],
            **({} if self.sealing is None else {"sealing": self.sealing.header()}),
        }

    def messages(
        self, kind: str, server_round: int, clients: Sequence[str], **body: Any
    ) -> list[Message]:
        """A message for each node that hosts any of ``clients``, with what each is to receive.

        Parts that several clients of a node receive are sent once.
        """
        broadcast = self.broadcast if kind == "train" else self.broadcast_to_evaluate
        self._asked = self.roster.by_node(clients)
        made, header = [], self.header()
        for node, hosted in self._asked.items():
            rows: list[Row] = []
            row_of: dict[str, int] = {}
            place: dict[int, int] = {}
            for client in hosted:
                parts = broadcast(server_round, client)
                if kind == "train":
                    self.sent[client] = parts
                if id(parts) not in place:
                    place[id(parts)] = len(rows)
                    rows.append(parts)
                row_of[client] = place[id(parts)]
            head = {**header, "round": server_round, "clients": hosted, "rows": row_of}
            made.append(
                Message(
                    pack(rows, {**head, **body}),
                    dst_node_id=node,
                    message_type=kind,
                    group_id=str(server_round),
                )
            )
        return made


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
