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
from fedpers.encryption.sealed_parts import Group, SealedParts
from fedpers.errors import ConfigError, RunError
from fedpers.evaluation import ClientResult, gated
from fedpers.evaluation.metrics import accuracy_summary
from fedpers.models import PersonalModel
from fedpers.models.base_state import made_from_public_data, read_base
from fedpers.models.lora import product_error
from fedpers.parts import Parts, combine
from fedpers.records import Row, pack
from fedpers.registry import Registry
from fedpers.robust import combine_robustly, too_long
from fedpers.seeding import seed_for
from strategies.checkpoint import State, members
from strategies.client_level import ClientLevel
from strategies.exchange import Answers, collect, reports_of, results_of, spending_of, unusable
from strategies.mixing import Mixing
from strategies.protection import check_combine
from strategies.roster import Roster
from strategies.rounds import RunFiles, run_rounds
from strategies.sealing import Sealing, check_encryption, plain
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
        mixes_rows: its mixing has rows for single clients, for which ciphertexts have to be made
            in another way.
        encrypted_form: what ``reads_updates`` names is had from ciphertexts in another way.
    """

    Params: ClassVar[type] = NoParams
    algorithm: ClassVar[str | None] = None
    shares: ClassVar[tuple[str, ...]] = ("body", "head")
    weights: str = "examples"
    mixes_rows: ClassVar[bool] = False
    encrypted_form: ClassVar[bool] = False

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
        self.parts: Row = Parts({slot: model.read(slot) for slot in self.shares})
        self.layouts = dict(self.parts.layouts)
        self.rows: dict[str, Row] = {}
        self.sent: dict[str, Row] = {}  # to each client that was asked to train
        self.roster = Roster()
        self.answers = Answers()
        self.results: list[ClientResult] = []
        self.unscored: dict[str, str] = {}
        self.spending: dict[str, Mapping[str, Any]] = {}
        self.spent: set[str] = set()
        self._product_error_known = False
        unit = config.privacy.unit if config.privacy.enabled else None
        self.client_level = ClientLevel(config) if unit == "client" else None
        self.sealing = Sealing(self) if config.encryption.enabled and self.shares else None
        self.signal = SignalToNoise()
        self.run_folder, self.last_round = "", 0
        # Frozen, and made of public data, which devices do not have.
        self.base = read_base(model) if made_from_public_data(config) else None
        self.base_digest = self.base.digest() if self.base else None
        self.task = data.task
        self._asked: dict[int, list[str]] = {}

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """The method's own parameters, after refusing settings that it cannot run with.

        A method with further needs (public data, say) adds its checks.

        Raises:
            ConfigError: naming the setting.
        """
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
        own_mixing = cls.mixing is not PersonalizedStrategy.mixing
        check_combine(config, cls.reads_updates(params), own_mixing)
        if config.encryption.enabled:
            check_encryption(config, cls.reads_updates(params), cls.encrypted_form)
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

    @property
    def equal_weights(self) -> bool:
        """Whether all updates weigh the same, whatever the reports will say."""
        if type(self).mixing is not PersonalizedStrategy.mixing:
            return False
        privacy = self.config.privacy
        uniform = privacy.enabled and (privacy.unit == "client" or privacy.weights == "uniform")
        return self.weights == "equal" or uniform

    # -- what a method may override -----------------------------------------------------------

    def extend(self, model: PersonalModel) -> None:
        """Add the method's own slots to the model. Default: none."""

    def select(self, server_round: int, clients: Sequence[str]) -> list[str]:
        """Who takes part. Default: a seeded uniform sample of ``strategy.fraction``."""
        if self.client_level is not None and self.sealing is None:
            return self.client_level.cohort(server_round, clients)
        settings = self.config.strategy
        share = ceil(settings.fraction * len(clients) - 1e-9)  # 0.07 * 100 is 7.00...01
        count = max(settings.min_clients, share)
        rng = random.Random(seed_for(self.config.seed, "select", server_round))
        chosen = set(rng.sample(list(clients), min(count, len(clients))))
        return [client for client in clients if client in chosen]

    def broadcast(self, server_round: int, client: str) -> Row:
        """What a client receives. Default: its own row if there is one, else the global parts."""
        return self.rows.get(client, self.parts)

    def broadcast_to_evaluate(self, server_round: int, client: str) -> Row:
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

    def sealed_groups(self) -> list[Group]:
        """Under encryption, which parts clients seal together. Default: all that is shared."""
        return [Group(self.shares)]

    def sealed_size(self, name: str) -> int:
        """Scalars in a part that clients seal."""
        return self.layouts[name].size

    def state(self) -> State:
        """What the next round needs to know of those before it: parts by name, JSON-able values.

        A method that remembers more adds it here and in ``load_state``.
        """
        groups: dict[str, Row] = {"parts": self.parts, "signal": self.signal.moved}
        groups |= {f"row {client}": parts for client, parts in self.rows.items()}
        values: dict[str, Any] = {
            "spent": sorted(self.spent),
            "spending": self.spending,
            "noise": self.signal.variance,
            "last_round": self.last_round,
        }
        return groups, values

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` returned."""
        groups, values = state
        self.parts, self.signal.moved = groups["parts"], plain(groups["signal"])
        self.rows = members(groups, "row")
        self.spent, self.spending = set(values["spent"]), values["spending"]
        self.signal.variance, self.last_round = values["noise"], values["last_round"]

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
        later = self.sealing is not None and not self.sealing.at_once
        judge = None if later or not self.shares else self.refused
        self._leave_out(unusable(answers, self._asked, reports, judge))
        # In the roster's order, so that sums do not depend on who answered first.
        trained = set(reports) - set(answers.failures)
        cohort = [client for client in self.roster.clients if client in trained]
        asked = {client for clients in self._asked.values() for client in clients}
        if not cohort and asked and asked <= self.spent:  # the others, if any, go on
            return None, MetricRecord({"answered": 0})
        drawn = self.client_level is not None and not asked  # a cohort drawn may be empty
        if not cohort and not drawn:
            first = next(iter(answers.failures.items()), ("none", "nobody was selected"))
            raise RunError(
                f"round {server_round}: no client is left; client {first[0]}: {first[1]}"
            )
        in_order = {client: reports[client] for client in cohort}
        for client, report in in_order.items():
            self.spending.update(spending_of(client, report))
        if self.shares:
            self._mix(server_round, in_order)
        for client, reason in answers.failures.items():
            log.warning("round %d: client %s left out: %s", server_round, client, reason)
        self.refine(server_round)
        losses = [r["loss"] for r in in_order.values() if r.get("loss") is not None]
        loss = {"loss": sum(losses) / len(losses)} if losses else {}
        return None, MetricRecord({"answered": len(cohort), **loss})

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        for client, reason in reasons.items():
            self.answers.failures[client] = reason
            self.answers.rows.pop(client, None)

    def _mix(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> None:
        rows = self.answers.rows
        if self.sealing is not None:
            if not self.sealing.at_once:
                mixing = self.sealing.collect(server_round, reports)
                judged = {c: self.refused(c, update) for c, update in rows.items()}
                self._leave_out({c: reason for c, reason in judged.items() if reason})
            else:
                mixing = self.mixing(server_round, reports)
            if self.client_level is not None and not self.client_level.enough(self._asked, rows):
                log.warning("round %d: too few shares of the noise came: no update", server_round)
                return
            self.combine(mixing, {client: rows[client] for client in reports if client in rows})
            return
        updates = {client: plain(rows[client]) for client in reports}
        sent = plain(self.parts)
        if self.client_level is not None:
            population = len(self.roster.clients)
            self.parts = self.client_level.mixed(server_round, sent, updates, population)
            rows.clear()  # the noised value is the only one kept
            return
        mixing = self.mixing(server_round, reports)
        # All received the same parts, and the weights are those of a mean.
        common = not self.rows and self.config.strategy.combine == "mean"
        self.combine(mixing, updates)
        if common and mixing.recipients[0] is None:
            noises = [r["noise"] for r in reports.values() if isinstance(r.get("noise"), Mapping)]
            if len(noises) == len(updates):
                weights, mean = mixing.weights[0], plain(self.parts)
                self.signal.note(server_round, sent, mean, weights, noises)

    def refused(self, client: str, update: Row) -> str | None:
        """Why a client's update cannot be mixed with others; None if it can."""
        if self.sealing is not None:
            return self.sealing.refused(update)
        if isinstance(update, SealedParts) or update.layouts != self.layouts:
            return f"update: got {update}, takes parts {sorted(self.layouts)} as sent"
        if (broken := update.first_not_finite()) is not None:
            return f"update: part {broken!r} is not finite"
        sent, most = plain(self.sent[client]), self.config.strategy.max_update_norm
        if self.client_level is not None and (far := self.client_level.too_far(sent, update)):
            return far
        return None if most is None else too_long(sent, update, most)

    def combine(self, mixing: Mixing, updates: Mapping[str, Row]) -> None:
        """Y = W X: rows for single clients into ``rows``, the row for None into ``parts``; or, by
        ``strategy.combine``, parts that do not hang on W."""
        if self.sealing is not None:
            sums, failures = self.sealing.combine(mixing, updates)
            self._leave_out(failures)
            mixed: Sequence[Row] = sums
        else:
            settings, given = self.config.strategy, [plain(update) for update in updates.values()]
            if settings.combine != "mean":
                self.parts = combine_robustly(settings.combine, given, settings.trim)
                return
            self._log_product_error(mixing, given)
            mixed = combine(mixing.weights, given)
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
