"""The server side of a method: who takes part, what each receives, how updates are mixed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from math import ceil
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, MetricRecordValues
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpers.config import Config, NoParams, params_of
from fedpers.data import FederatedData
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import ClientResult, gated
from fedpers.evaluation.metrics import accuracy_summary
from fedpers.models import PersonalModel
from fedpers.models.lora import product_error
from fedpers.parts import Parts, combine
from fedpers.records import pack
from fedpers.registry import Registry
from fedpers.seeding import seed_for
from strategies.client_level import ClientLevel
from strategies.exchange import Answers, collect, reports_of, results_of, spending_of, unusable
from strategies.mixing import Mixing
from strategies.roster import Roster
from strategies.rounds import RunFiles, run_rounds
from strategies.signal import SignalToNoise

__all__ = ["Mixing", "PersonalizedStrategy", "find_strategy", "strategies"]

log = logging.getLogger("fedpers")

strategies: Registry[type[PersonalizedStrategy]] = Registry(
    "strategy", key="strategy.name", package="strategies", group="fedpers.strategies"
)


class PersonalizedStrategy(Strategy):
    """A Flower strategy whose clients each get what is theirs.

    A round: ``select`` -> ``broadcast`` -> local training -> Y = W X with W from ``mixing`` ->
    ``refine``. A method overrides one or two of these; the messages, the failures and the
    arithmetic on ciphertexts or plain parts are here.

    Class attributes:
        Params: a dataclass of the method's own settings on the server (``strategy.params``).
        algorithm: the client side, by name or dotted path. Default: the strategy's own name.
        shares: the slots of the model that the server keeps, mixes and sends.
        weights: of the default mixing: by number of ``examples``, or ``equal``.
    """

    Params: ClassVar[type] = NoParams
    algorithm: ClassVar[str | None] = None
    shares: ClassVar[tuple[str, ...]] = ("body", "head")
    weights: str = "examples"

    def __init__(self, config: Config, model: PersonalModel, data: FederatedData) -> None:
        """Bind the method to a run.

        Args:
            config: the run's settings.
            model: a model as every client builds it; its slots are the first global parts.
            data: for its public split; the server never reads a client's examples.
        """
        self.params: Any = self.check(config, data)
        self.config, self.model, self.public = config, model, data.public
        self.extend(model)
        self.parts = Parts({slot: model.read(slot) for slot in self.shares})
        self.rows: dict[str, Parts] = {}
        self.roster = Roster()
        self.answers = Answers()
        self.results: list[ClientResult] = []
        self.unscored: dict[str, str] = {}
        self.spending: dict[str, Mapping[str, Any]] = {}
        self.spent: set[str] = set()
        self._product_error_known = False
        unit = config.privacy.unit if config.privacy.enabled else None
        self.client_level = ClientLevel(config) if unit == "client" else None
        self.signal = SignalToNoise()
        self.run_folder, self.last_round = "", 0
        self._asked: dict[int, list[str]] = {}

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """The method's own parameters, after refusing settings that it cannot run with.

        A method with further needs (public data, say) adds its checks.

        Raises:
            ConfigError: naming the setting.
        """
        if config.encryption.enabled:
            cure = "encrypted aggregation is not built yet"
            raise ConfigError("encryption.enabled", True, "false", cure)
        # What the server does not take may be the client side's, which refuses what is unknown.
        given = config.strategy.params
        params = params_of(cls.Params, {n: given[n] for n in cls.param_names() if n in given})
        if config.privacy.enabled and config.privacy.unit == "client":
            name, takes = config.strategy.name, "a method whose server takes nothing but a mean"
            reads = cls.reads_updates(params)
            if reads is not None:
                raise ConfigError("strategy.name", name, f"{takes}; this one reads {reads}")
            if cls.mixing is not PersonalizedStrategy.mixing:
                cure = "it has a mixing of its own; set privacy.unit=example"
                raise ConfigError("strategy.name", name, takes, cure)
        return params

    @classmethod
    def reads_updates(cls, params: Any) -> str | None:
        """What the server reads of single clients' updates, in words; None if it only mixes them.

        Such a method cannot have one noised sum for a release, and needs a form of its own for
        ciphertexts.
        """
        return None

    @classmethod
    def param_names(cls) -> list[str]:
        """The names in ``strategy.params`` that this side of the method takes."""
        return sorted(field.name for field in fields(cls.Params))

    # -- what a method may override -----------------------------------------------------------

    def extend(self, model: PersonalModel) -> None:
        """Add the method's own slots to the model. Default: none."""

    def select(self, server_round: int, clients: Sequence[str]) -> list[str]:
        """Who takes part. Default: a seeded uniform sample of ``strategy.fraction``."""
        if self.client_level is not None:
            return self.client_level.cohort(server_round, clients)
        settings = self.config.strategy
        share = ceil(settings.fraction * len(clients) - 1e-9)  # 0.07 * 100 is 7.00...01
        count = max(settings.min_clients, share)
        rng = random.Random(seed_for(self.config.seed, "select", server_round))
        chosen = set(rng.sample(list(clients), min(count, len(clients))))
        return [client for client in clients if client in chosen]

    def broadcast(self, server_round: int, client: str) -> Parts:
        """What a client receives. Default: its own row if there is one, else the global parts."""
        return self.rows.get(client, self.parts)

    def broadcast_to_evaluate(self, server_round: int, client: str) -> Parts:
        """What a client receives to be evaluated. Default: what it would receive to train."""
        return self.broadcast(server_round + 1, client)

    def mixing(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> Mixing:
        """W, from plaintext reports only. Default: one row, by ``weights``."""
        if self.weights == "equal":
            return Mixing.equal(len(reports))
        examples = torch.tensor([float(report["examples"]) for report in reports.values()])
        if not bool(examples.sum() > 0):
            examples = torch.ones_like(examples)
        return Mixing((examples / examples.sum())[None])

    def refine(self, server_round: int) -> None:
        """A server step in the clear after combining. Default: none."""

    # -- one round ----------------------------------------------------------------------------

    @property
    def eligible(self) -> list[str]:
        """The clients that may still train: those whose privacy budget is not spent."""
        return [client for client in self.roster.clients if client not in self.spent]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that hosts a selected client (``arrays`` is not used)."""
        if self.client_level is not None:  # charged before anything is released
            self.client_level.charge()
        return self.messages("train", server_round, self.select(server_round, self.eligible))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Mix the updates that came, leave out those that are broken, refine.

        Raises:
            RunError: nobody's update can be used.
        """
        self.answers = answers = collect(replies, self._asked)
        reports = reports_of(answers, self._asked)
        for node, body in answers.bodies.items():
            spent = body.get("spent")
            spent = spent if isinstance(spent, Mapping) else {}
            for client in set(self._asked[node]) & set(spent):
                self.spent.add(client)
                self.spending.update(spending_of(client, spent[client]))
        for client, reason in unusable(answers, self._asked, reports, self.refused).items():
            answers.failures[client] = reason
            answers.rows.pop(client, None)
        # In the roster's order, so that sums do not depend on who answered first.
        cohort = [client for client in self.roster.clients if client in answers.rows]
        for client, reason in answers.failures.items():
            log.warning("round %d: client %s left out: %s", server_round, client, reason)
        asked = {client for clients in self._asked.values() for client in clients}
        if not cohort and asked and asked <= self.spent:  # the others, if any, go on
            return None, MetricRecord({"answered": 0})
        if not cohort and (asked or self.client_level is None):  # a cohort drawn may be empty
            first = next(iter(answers.failures.items()), ("none", "nobody was selected"))
            raise RunError(
                f"round {server_round}: no client is left; client {first[0]}: {first[1]}"
            )
        in_order = {client: reports[client] for client in cohort}
        for client, report in in_order.items():
            self.spending.update(spending_of(client, report))
        if self.shares:
            self._mix(server_round, in_order, {c: answers.rows[c] for c in cohort})
        self.refine(server_round)
        losses = [r["loss"] for r in in_order.values() if r.get("loss") is not None]
        loss = {"loss": sum(losses) / len(losses)} if losses else {}
        return None, MetricRecord({"answered": len(cohort), **loss})

    def _mix(
        self, server_round: int, reports: Mapping[str, Mapping[str, Any]], updates: dict[str, Parts]
    ) -> None:
        if self.client_level is not None:
            population = len(self.roster.clients)
            self.parts = self.client_level.mixed(server_round, self.parts, updates, population)
            self.answers.rows.clear()  # the noised value is the only one kept
            return
        mixing, sent = self.mixing(server_round, reports), self.parts
        common = not self.rows  # all received the same parts
        self.combine(mixing, updates)
        if common and mixing.recipients[0] is None:
            noises = [r["noise"] for r in reports.values() if isinstance(r.get("noise"), Mapping)]
            if len(noises) == len(updates):
                self.signal.note(server_round, sent, self.parts, mixing.weights[0], noises)

    def refused(self, update: Parts) -> str | None:
        """Why an update cannot be mixed with others; None if it can."""
        if update.layouts != {name: part.layout for name, part in self.parts.items()}:
            return f"update: got {update}, takes parts {sorted(self.parts)} as sent"
        if (broken := update.first_not_finite()) is not None:
            return f"update: part {broken!r} is not finite"
        if self.client_level is not None:
            return self.client_level.too_far(self.parts, update)
        return None

    def combine(self, mixing: Mixing, updates: Mapping[str, Parts]) -> None:
        """Y = W X: rows for single clients into ``rows``, the row for None into ``parts``."""
        self._log_product_error(mixing, list(updates.values()))
        mixed = combine(mixing.weights, list(updates.values()))
        for recipient, parts in zip(mixing.recipients, mixed, strict=True):
            if recipient is None:
                self.parts = parts
            else:
                self.rows[recipient] = parts

    def _log_product_error(self, mixing: Mixing, updates: Sequence[Parts]) -> None:
        """Say once what averaging both LoRA factors costs (``model.lora.share: both``)."""
        lora = self.config.model.lora
        if self._product_error_known or lora is None or "body" not in updates[0]:
            return
        self._product_error_known = True
        if lora.share == "both":
            error = product_error(mixing.weights[0], [update["body"] for update in updates])
            if error is not None:
                log.info(
                    "LoRA: averaging both factors misses the mean product by %.1f %%", 100 * error
                )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node: all clients are evaluated, selected or not."""
        if not self.ends_with(server_round) and server_round % self.config.evaluation.every:
            return []
        return self.messages("evaluate", server_round, self.roster.clients)

    def ends_with(self, server_round: int) -> bool:
        """Whether a round is the last: by the settings, or as nobody's budget is left."""
        nothing_left = bool(self.roster.clients) and not self.eligible
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
        size = ", ".join(f"{name} {part.layout.size:,}" for name, part in self.parts.items())
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
            rows: list[Parts] = []
            row_of: dict[str, int] = {}
            place: dict[int, int] = {}
            for client in hosted:
                parts = broadcast(server_round, client)
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
