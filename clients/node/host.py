"""The clients of one node, in one process: one resident model and data set, used in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clients.admission import check_private, check_told
from clients.base import LocalAlgorithm, find_algorithm
from clients.methods.local import Local
from clients.node.device import Device
from clients.node.exporting import EVALUATED, evaluated_in
from clients.node.failures import withheld
from clients.node.keeper import Keeper
from clients.node.loading import data_and_model
from clients.node.store import ClientStore
from clients.training.account import REPORT, Account, check_client
from clients.training.baseline import train_baselines
from clients.training.features import FeatureCache
from clients.training.groups import Groups, sizes_on, train_group
from clients.training.reporting import told
from clients.training.scoring import Scoring
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers.channels.plain import as_declared
from fedpers.compute import device_for
from fedpers.config import Config
from fedpers.context import NOTHING, Context, Said
from fedpers.data import FederatedData, Schema
from fedpers.errors import ClientError, DataError
from fedpers.evaluation import ClientResult
from fedpers.failures import DATA
from fedpers.memory import keep_memory
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from fedpers.privacy.noise import Sources
from fedpers.progress import Progress
from fedpers.robust import clipped

PERSONAL, BASELINE, STEPS, TUNED = "personal", "baseline", "steps", "tuned"
Answer = tuple[Parts, dict[str, Any]]  # what a client uploads, and its report


class Started(NamedTuple):
    """A client whose round is charged and about to be trained."""

    client: str
    server_round: int
    broadcast: Parts
    asked: list[Any]
    store: ClientStore
    account: Account | None
    trainer: Trainer
    working: Parts


class ClientHost(Keeper):
    """Trains and evaluates the clients that a node hosts, one after another.

    Args:
        config: the run's settings.
        algorithm: name of the method's client side.
        server_params: names in ``strategy.params`` that the method's server side takes.
        stores: the folder of the clients' stores.
        device: where the node is one; it hosts one client, and its ledger outlives runs.
        base: what a device needs of the model besides the settings, by digest.
        schema: of the server's data.
        sources: see ``Keeper``.
    """

    def __init__(
        self,
        config: Config,
        algorithm: str,
        server_params: Sequence[str],
        stores: Path,
        device: Device | None = None,
        base: str | None = None,
        schema: Schema | None = None,
        sources: Sources | None = None,
    ) -> None:
        torch.set_num_threads(config.simulation.cpus_per_node)
        keep_memory()
        found, params = find_algorithm(algorithm, config, server_params)
        self.run, self.method = stores.parent.name, (algorithm, tuple(server_params))
        kept = Path(config.state) if config.state else stores
        self.ledgers = (kept if device is None else device.state) / "ledgers"
        self.data, self.model = self._load(config, device, base, schema)
        # What convolutions compute fastest in; other layers are as they were.
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.local = Local(config, self.model, Local.Params())
        self.algorithm = found(config, self.model, params)
        # Now that all of it is built, on the CPU as the server builds it.
        self.model = self.model.to(device_for(config.simulation.gpus_per_node))
        self.examples: FeatureCache | FederatedData = self.data
        if config.model.cache or self.model.device.type != "cpu":
            with withheld(DATA):
                self.examples = FeatureCache(self.data, self.model, stem=config.model.cache)
        self.groups = Groups(config.training.fold, self.model, self.algorithm, stores / "fold.size")
        clients = len(self.data.clients)
        super().__init__(config, stores, device, clients, found, sources)
        self.known = Parts()  # what all clients have, see ``clients.node.pooling``
        self.hosted = [*self.data.clients, *self.data.held_out]
        self.declared = self.algorithm.declared.layouts
        self.reports, self.polls = self.algorithm.reports, self.algorithm.polls
        self.view = ModelView(self.model, self.algorithm)
        self.scoring = self._scoring()
        self._accounts = dict[str, Account]()
        if config.privacy.enabled:
            self._admit(algorithm)

    def _scoring(self) -> Scoring:
        return Scoring(self.algorithm, self.local, self.data, self.examples, self.model)

    def work_on(self, data: FederatedData) -> None:
        """Take up other data of the same clients, as attacks do."""
        self.data = data
        self.examples = FeatureCache(data, self.model) if self.config.model.cache else data
        self.scoring = self._scoring()
        self._accounts.clear()

    def _load(self, config: Config, *given: Any) -> tuple[FederatedData, PersonalModel]:
        return data_and_model(config, *given)

    def _admit(self, name: str) -> None:
        """Refuse a method whose releases the plan does not find covered."""
        check = check_private if self.config.privacy.by_example else check_told
        check(name, self.algorithm)

    def check(self) -> None:
        """Refuse settings that protect nothing at one of the clients, before anything is trained;
        each client is checked again when its account is opened.

        Raises:
            ConfigError: as in ``check_client``.
        """
        if self.config.privacy.by_example:
            protected = self.config.privacy.protects_counts
            for client in self.data.clients:
                check_client(self.config, client, None if protected else self.data.size(client))

    @property
    def holds_back(self) -> bool:
        """Whether results stay on the clients: they are releases that no noise covers."""
        return not self.config.evaluation.diagnostics

    def train(
        self,
        client: str,
        server_round: int,
        broadcast: Parts,
        also: Sequence[str] = (),
        said: Said = NOTHING,
    ) -> Answer:
        """One client's local training: what it uploads, with the parts ``also``, and its report.

        Raises:
            ClientError: training broke down.
        """
        (answer,) = self.train_all({client: broadcast}, server_round, {client: said}).values()
        if isinstance(answer, Exception):
            raise answer
        upload, report = answer
        return self.with_derived(upload, also), report

    def with_derived(self, upload: Parts, also: Sequence[str]) -> Parts:
        """An upload with further parts that the method makes of it.

        Raises:
            ClientError: the method does not declare one of them.
        """
        if unknown := [name for name in also if name not in self.algorithm.derives]:
            takes = ", ".join(self.algorithm.derives) or "none"
            raise ClientError(f"derived: got part {unknown[0]!r}, takes {takes}")
        made = {n: self.algorithm.derived(n, upload, self.view, self.public) for n in also}
        return upload | made

    def train_all(
        self,
        broadcasts: Mapping[str, Parts],
        server_round: int,
        said: Mapping[str, Said] = NOTHING,
    ) -> dict[str, Answer | Exception]:
        """``train`` for several clients, with what was said to each, in groups where that is
        faster; one that fails costs itself alone, or sends what the channel puts in its place."""
        answers: dict[str, Answer | Exception] = {}
        sizes: dict[str, int] = {}
        for client in broadcasts:
            try:
                sizes[client] = self.data.size(client)
            except DataError as error:
                answers[client] = error
        # Clients of like sizes together: a group's steps are as long as its longest batch.
        clients = sorted(sizes, key=sizes.__getitem__, reverse=True)
        size = self.groups.size(
            len(clients), lambda: self._trial(clients, broadcasts, server_round)
        )
        for first in Progress(f"round {server_round}, training", len(clients)).steps(size):
            begun: list[Started] = []
            for client in clients[first : first + size]:
                try:
                    context = Context(client, server_round, said.get(client, NOTHING))
                    start = self._start(context, broadcasts[client])
                    if isinstance(start, Started):
                        begun.append(start)
                    else:
                        answers[client] = start
                except Exception as error:  # whatever a client's data or a plug-in may raise
                    answers[client] = error
            for start, working in zip(begun, self._together(begun), strict=True):
                try:
                    if isinstance(working, Exception):
                        raise working
                    if working is None:
                        working = self.algorithm.train(start.working, start.trainer)
                    answers[start.client] = self._finish(start, working)
                except Exception as error:
                    answers[start.client] = error
        failed = {c: e for c in clients if isinstance(e := answers[c], Exception)}
        for client, why in failed.items():
            if stands_in := self.channel.stands_in(broadcasts[client].only(self.declared)):
                self.reasons.note(f"train: client {client} sends what it received", why)
                answers[client] = stands_in
        return answers

    def _together(self, begun: Sequence[Started]) -> Sequence[Parts | Exception | None]:
        """What became of clients that are trained at once; None for who is trained by itself."""
        if self.groups.fold is None:
            return [None] * len(begun)
        trainers, workings = [start.trainer for start in begun], [s.working for s in begun]
        return train_group(self.algorithm, self.groups.fold, trainers, workings)

    def _trial(
        self, clients: Sequence[str], broadcasts: Mapping[str, Parts], server_round: int
    ) -> tuple[list[Trainer], list[Parts]]:
        """Trainers and working parts of the first clients, to be thrown away."""
        trainers, workings = [], []
        for client in clients[: max(sizes_on(self.model.device))]:
            with suppress(Exception):  # it costs itself alone, when it is trained
                trainer = self.trainer(client, server_round)
                context = Context(client, server_round)
                workings.append(self.algorithm.receive(broadcasts[client], Parts(), context))
                trainers.append(trainer)
        return trainers, workings

    @cached_property
    def public(self) -> Tensor:
        """The public inputs, as the model takes them: past the frozen layers where those are
        cached."""
        x = self.data.public.x.to(self.model.device)
        return self.model.prepared(x) if self.model.after_stem else x

    def _start(self, context: Context, broadcast: Parts) -> Started | Answer:
        """Charge the round; or what was answered to the same message before."""
        client, server_round = context.client, context.server_round
        store = self.store(client)
        personal, account = store.load_before(PERSONAL, server_round), self.account(client)
        # Asked twice, by a server that was restarted or a message that came twice, a private client
        # releases nothing new.
        message = [self.run, server_round, broadcast.digest(), dict(context.said)]
        asked = [] if account is None else message
        if asked and (answer := store.answer_to(asked)):
            return answer
        if account is not None:  # before anything is released, so that a crash can only over-count
            account.charge(*account.due(first=not personal))
        trainer = self.trainer(client, server_round, account=account)
        if account is not None:
            account.count_examples(len(trainer.examples), trainer.release_counts)
        working = self.algorithm.receive(broadcast, personal, context)
        known = (client, server_round, broadcast, asked, store, account)
        return Started(*known, trainer, working)

    def _finish(self, start: Started, working: Parts) -> Answer:
        """Keep what stays, and say what leaves."""
        client, server_round, broadcast, asked, store, account, trainer, _ = start
        taken = store.load_json(STEPS).get(STEPS, {})  # by round, as one may be trained again
        store.save_json(STEPS, {STEPS: taken | {str(server_round): trainer.steps}})
        for phase, error in trainer.broken.items():
            self.reasons.note(f"phase {phase!r} of client {client}", error)
        # One that is not as declared must not spoil its host's other clients' message.
        upload = as_declared(self.algorithm.upload(working), self.declared)
        if (most := self.config.strategy.max_update_norm) is not None:
            upload = clipped(upload, broadcast, most)
        upload = self.channel.prepare(upload, broadcast)
        if (kept := self.algorithm.keep(working)) and kept.first_not_finite() is None:
            store.save_round(PERSONAL, server_round, kept)
        # Without examples nothing was trained: the loss is unknown, and the weight is 0.
        losses = [loss for loss in trainer.losses.values() if isfinite(loss)]
        loss = sum(losses) / len(losses) if losses and not self.holds_back else None
        method, stats = {}, self.algorithm.reports
        if stats and (said := told(REPORT, stats, self.algorithm.report, working, trainer)):
            method = {"method": said}
        # A report is a release too: under privacy weights are uniform or noised.
        if not self.config.privacy.by_example:
            count = len(trainer.examples) if self.channel.counts else 1
            return upload, {"examples": count, "loss": loss, **method}
        if account is None:  # nothing of its own is in what it sends
            return upload, {"examples": 0, "loss": loss, "noise": dict.fromkeys(upload, 0.0)}
        noise = {
            n: trainer.noise[n] for n in upload if n in trainer.noise and upload[n] is working[n]
        }
        report = {"examples": account.weight, "loss": loss, "noise": noise, **method}
        report |= self.spending(client)
        store.keep_answer(asked, upload, report)
        return upload, report

    def spending(self, client: str) -> dict[str, float]:
        """What one client has spent so far, see ``Account.spending``."""
        account = self.account(client)
        return {} if account is None else account.spending()

    def train_baselines(self, clients: Sequence[str]) -> dict[str, Exception]:
        """Train local-only models: as many epochs as the run, on each client's data alone; in
        groups where those were found to be faster. What those that failed raised."""
        order = sorted(clients, key=self.data.size, reverse=True)
        fold, size = self.groups.fold, self.groups.known

        def keep(client: str, parts: Parts) -> None:
            self.store(client).save(BASELINE, parts)

        return train_baselines(self.local, order, self.trainer, keep, fold, size)

    def evaluate(
        self,
        client: str,
        server_round: int,
        broadcast: Parts,
        *,
        common: bool = True,
        said: Said = NOTHING,
    ) -> ClientResult:
        """Score every model of a client, a global one only if all received what it did."""
        store, trainer = self.store(client), self.trainer(client, server_round)
        personal = store.load_before(PERSONAL, server_round + 1)
        came = self.algorithm.receive(broadcast, personal, Context(client, server_round, said))
        working = self.algorithm.recall(self.algorithm.tune(came, trainer), trainer)
        store.save_json(STEPS, store.load_json(STEPS) | {TUNED: trainer.steps})
        result = self.scoring.score(client, came, working, store.load(BASELINE), common=common)
        if self.config.evaluation.adapters:  # the model that was scored is the one to save
            filling = self.algorithm.filled("personal")
            assert filling is not None
            scored = Parts({slot: working[part] for slot, part in filling.items()})
            store.save(evaluated_in(server_round, self.config), scored)
        if self.device is not None:  # the server may not be told, its owner may look
            store.save_json(EVALUATED, result.to_json())
        return result

    def newcomer(
        self,
        client: str,
        server_round: int,
        broadcast: Parts,
        batches: int,
        said: Said = NOTHING,
    ) -> ClientResult:
        """Score a client that never trained, after personalising in ``batches`` local batches."""
        trainer = self.trainer(client, server_round)
        came = self.algorithm.receive(broadcast, Parts(), Context(client, server_round, said))
        working = self.algorithm.recall(self.algorithm.tune(came, trainer, batches), trainer)
        return self.scoring.score(client, came, working, Parts())

    def account(self, client: str) -> Account | None:
        """A client's account; None where no release of its own is to be paid for."""
        privacy = self.config.privacy
        if not privacy.by_example:
            return None
        if not self.data.size(client) and not privacy.protects_counts:
            return None  # it has nothing to release, and everybody may know
        if client not in self._accounts:
            owner = self.device.client if self.device else None
            releases, data = self.algorithm.releases(), self.data.client(client)
            known = (self.config, releases, client, data, self.ledgers, self.store(client))
            self._accounts[client] = Account(*known, self.sources, self.run, owner)
        return self._accounts[client]

    def trainer(
        self,
        client: str,
        server_round: int,
        algorithm: LocalAlgorithm | None = None,
        account: Account | None = None,
    ) -> Trainer:
        """Of one client in a round; a private one, if it has an account."""
        known = (self.config, self.model, algorithm or self.algorithm)
        split = self.examples.client(client)
        return Trainer(
            *known,
            split.train,
            server_round=server_round,
            client=client,
            account=account,
            validation=split.val,
        )
