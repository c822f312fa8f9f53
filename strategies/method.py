"""What a method is on the server: what it shares, who takes part, how updates are mixed."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.config import Config, NoParams, params_of
from fedpers.data import FederatedData
from fedpers.evaluation import ClientResult
from fedpers.models import PersonalModel
from fedpers.models.base_state import made_from_public_data, read_base
from fedpers.models.lora import product_error
from fedpers.parts import Layout, Parts, combine
from fedpers.records import Row, same
from fedpers.robust import combine_robustly, left_out, too_long
from fedpers.seeding import seed_for
from strategies.checkpoint import State, members
from strategies.client_level import ClientLevel, check_client_level
from strategies.exchange import Answers
from strategies.mixing import Mixing
from strategies.protection import check_combine, check_encryption, cohort_of
from strategies.roster import Roster
from strategies.sealing import Sealing, plain
from strategies.signal import SignalToNoise

log = logging.getLogger("fedpers")


class Method:
    """The hooks that a method overrides, and the arithmetic on plain parts or ciphertexts.

    A round: ``select`` -> ``broadcast`` -> local training -> Y = W X with W from ``mixing`` ->
    ``refine``.

    A mean by the default mixing is taken as the updates come, and none of them is kept. A method
    that looks at single updates overrides ``mixing``, ``combine`` or ``refine``, or says so in
    ``reads_updates``, and then gets them all: as an argument, and in ``answers.rows``.

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
        # Made of public data, which devices do not have.
        self.base = read_base(model) if made_from_public_data(config) else None
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
        self.short = False  # too few clients are there for the round
        self.skipped = 0  # rounds in a row of which nothing was used
        self.evaluates_global = True  # what was sent to be evaluated last was the same for all
        self.unused: str | None = None  # why nothing of the last round was used
        self.similarity: Tensor | None = None  # [K, K], of the clients, where a method has it
        self._product_error_known = False
        unit = config.privacy.unit if config.privacy.enabled else None
        self.client_level = ClientLevel(config) if unit == "client" else None
        self.sealing = Sealing(self) if config.encryption.enabled and self.shares else None
        self.signal = SignalToNoise()
        self.run_folder, self.last_round = "", 0
        self.base_digest = self.base.digest() if self.base else None
        self.task, self.schema = data.task, data.schema
        self._asked: dict[str, list[str]] = {}  # by message's group

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
            check_client_level(config, cls.reads_updates(params), cls.mixing is not Method.mixing)
        own_mixing = cls.mixing is not Method.mixing
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
        if type(self).mixing is not Method.mixing:
            return False
        privacy = self.config.privacy
        uniform = privacy.enabled and (privacy.unit == "client" or privacy.weights == "uniform")
        return self.weights == "equal" or uniform

    @property
    def weighs_examples(self) -> bool:
        """Whether clients' numbers of examples, and nothing else, are the weights of updates."""
        return type(self).mixing is Method.mixing and not self.equal_weights

    # -- what a method may override -----------------------------------------------------------

    def extend(self, model: PersonalModel) -> None:
        """Add the method's own slots to the model. Default: none."""

    def select(self, server_round: int, clients: Sequence[str]) -> list[str]:
        """Who takes part. Default: a seeded uniform sample of ``strategy.fraction``."""
        if self.client_level is not None and self.sealing is None:
            return self.client_level.cohort(server_round, clients)
        count = cohort_of(self.config, len(clients))
        rng = random.Random(seed_for(self.config.seed, "select", server_round))
        chosen = set(rng.sample(list(clients), count))
        return [client for client in clients if client in chosen]

    def broadcast(self, server_round: int, client: str) -> Row:
        """What a client receives. Default: its own row if there is one, else the global parts."""
        return self.rows.get(client, self.parts)

    def broadcast_to_evaluate(self, server_round: int, client: str) -> Row:
        """What a client receives to be evaluated. Default: what it would receive to train."""
        return self.broadcast(server_round + 1, client)

    def common(self, received: Mapping[str, Row]) -> bool:
        """Whether all clients receive the same, and none a row that was made for it: only then is
        what they receive a global model."""
        first = next(iter(received.values()), None)
        made = any(parts is self.rows.get(client) for client, parts in received.items())
        return not made and all(same(first, parts) for parts in received.values())

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

    def sealed_layout(self, name: str) -> Layout:
        """Names and shapes of a part that clients seal."""
        return self.layouts[name]

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
            "sigma": self.client_level.mechanism.sigma if self.client_level else None,
            "counts": self.sealing.counts if self.sealing else {},
        }
        return groups, values

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` returned."""
        groups, values = state
        if self.sealing is not None:
            self.sealing.check_key(groups)
            self.sealing.counts = values.get("counts", {})  # a checkpoint of an earlier version
        self.parts, self.signal.moved = groups["parts"], plain(groups["signal"])
        self.rows = members(groups, "row")
        self.spent, self.spending = set(values["spent"]), dict(values["spending"])
        self.signal.variance, self.last_round = values["noise"], values["last_round"]
        if self.client_level is not None:
            level = self.client_level
            level.mechanism = level.kind(values["sigma"], level.rate)

    def header(self) -> dict[str, Any]:
        """What every message says about the run."""
        raise NotImplementedError

    # -- the arithmetic ----------------------------------------------------------------------

    @property
    def asked(self) -> list[str]:
        """The clients that the last messages were for."""
        return [client for clients in self._asked.values() for client in clients]

    @property
    def least(self) -> int:
        """The fewest updates that are mixed.

        By client a round releases what it was charged for whoever answers, be it noise alone:
        whether it does must not hang on clients' data. Where clients add the noise, under
        encryption, there is none without them: see ``ClientLevel.enough``.
        """
        if self.client_level is not None and not self.short:
            return 1 if self.client_level.shares else 0
        return self.config.strategy.min_clients

    def _mix(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether enough updates were left to be mixed."""
        rows = self.answers.rows
        if self.sealing is not None:
            self.sealing.counts |= {c: report["examples"] for c, report in reports.items()}
            if not self.sealing.at_once:
                mixing = self.sealing.collect(server_round, reports)
                judged = {c: self.refused(c, update) for c, update in rows.items()}
                self.answers.leave_out({c: reason for c, reason in judged.items() if reason})
                if len(rows) < self.least:
                    return False
            else:
                mixing = self.mixing(server_round, reports)
            self.combine(mixing, {client: rows[client] for client in reports if client in rows})
            return True
        updates = {client: plain(rows[client]) for client in reports}
        sent = plain(self.parts)
        if self.client_level is not None:
            population = len(self.roster.clients)
            self.parts = self.client_level.mixed(server_round, sent, updates, population)
            rows.clear()  # the noised value is the only one kept
            return True
        mixing = self.mixing(server_round, reports)
        # All received the same parts, and the weights are those of a mean.
        common = not self.rows and self.config.strategy.combine == "mean"
        self.combine(mixing, updates)
        if common and mixing.recipients[0] is None:
            self._note_signal(server_round, sent, mixing, reports)
        return True

    def _note_signal(
        self,
        server_round: int,
        sent: Parts,
        mixing: Mixing,
        reports: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Follow the mean, whose first row of weights is ``mixing``'s, if the noise in all updates
        is known."""
        noises = [r["noise"] for r in reports.values() if isinstance(r.get("noise"), Mapping)]
        if len(noises) == len(reports):
            self.signal.note(server_round, sent, plain(self.parts), mixing.weights[0], noises)

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
        ``strategy.combine``, parts that do not hang on W. Where nothing can be used after all,
        ``unused`` says why."""
        if self.sealing is not None:
            sums, failures = self.sealing.combine(mixing, updates)
            self.answers.leave_out(failures)
            level, added = self.client_level, set(updates) - set(failures)
            if level is not None and not level.enough(self._asked, dict.fromkeys(added)):
                self.unused = "too few shares of the noise came"
                return
            mixed: Sequence[Row] = sums
        else:
            settings, given = self.config.strategy, [plain(update) for update in updates.values()]
            if settings.combine != "mean":
                if settings.combine != "median" and not left_out(settings.trim, len(given)):
                    log.warning("strategy.trim leaves out nobody of %d updates", len(given))
                self.parts = combine_robustly(settings.combine, given, settings.trim)
                return
            self._log_product_error(mixing.weights[0], given)
            mixed = combine(mixing.weights, given)
        for recipient, parts in zip(mixing.recipients, mixed, strict=True):
            if recipient is None:
                self.parts = parts
            else:
                self.rows[recipient] = parts

    def _log_product_error(self, weights: Tensor, updates: Sequence[Parts]) -> None:
        """Say once what averaging both LoRA factors costs (``model.lora.share: both``): of the
        updates of a round, or of the first that are mixed where they are mixed as they come."""
        lora = self.config.model.lora
        if self._product_error_known or lora is None or "body" not in updates[0]:
            return
        self._product_error_known = True
        if lora.share == "both":
            error = product_error(weights, [update["body"] for update in updates])
            if error is not None:
                log.info(
                    "LoRA: averaging both factors misses the mean product by %.1f %% (%d clients)",
                    100 * error,
                    len(updates),
                )
