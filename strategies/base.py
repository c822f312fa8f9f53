"""The server side of a method: who takes part, what each receives, how updates are mixed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fedpers.channels.base import Channel, Needs, State
from fedpers.channels.build import channel_of, check_channel, settle
from fedpers.cohorts import cohort_of
from fedpers.config import Config, NoParams, params_of
from fedpers.data import FederatedData
from fedpers.errors import ConfigError
from fedpers.mixing import Mixing
from fedpers.models import PersonalModel
from fedpers.moments import Frame
from fedpers.parts import Layout, Part, Parts
from fedpers.pooling import check_pools
from fedpers.records import Row, same
from fedpers.registry import Registry
from fedpers.seeding import seed_for
from fedpers.stats import Stat
from strategies.checkpoint import members

__all__ = ["Mixing", "Needs", "PersonalizedStrategy", "find_strategy", "strategies"]

strategies: Registry[type[PersonalizedStrategy]] = Registry(
    "strategy", key="strategy.name", package="strategies.methods", group="fedpers.strategies"
)


class Asks(Protocol):
    """Sends a message of the method's own to clients, whose side answers it (``messages``)."""

    def __call__(
        self,
        kind: str,
        server_round: int,
        asked: Mapping[str, Mapping[str, Any]],
        parts: Mapping[str, Row] | None = None,
    ) -> dict[str, Mapping[str, Any]]:
        """What each client answered that did.

        Args:
            asked: by client, what it is asked, JSON-able.
            parts: what each receives with the question; nothing, by default.
        """


class Pooling(Protocol):
    """Sums over all clients, see ``strategies.pooling.Pools``."""

    def __call__(self, what: str, size: int) -> Tensor:
        """The mean [size] over all examples of what the clients' ``pool`` makes of each."""

    def frame(self, what: str, features: int) -> Frame:
        """The common scale of features, see ``fedpers.moments``."""

    def choose(self, what: str, size: int) -> int:
        """The one of ``size`` settings whose pooled validation loss is the least."""


class NoPools:
    """Before there is a run."""

    def __call__(self, what: str, size: int) -> Tensor:
        """Zeros."""
        return torch.zeros(size)

    def frame(self, what: str, features: int) -> Frame:
        """One that needs no sum."""
        return Frame.fixed(features)

    def choose(self, what: str, size: int) -> int:
        """The first."""
        return 0


def nobody(
    kind: str,
    server_round: int,
    asked: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, Row] | None = None,
) -> dict[str, Mapping[str, Any]]:
    """What is answered before there is a run."""
    return {}


class PersonalizedStrategy:
    """The hooks of a method. Each has a default: a method overrides one or two.

    A round: ``poll`` -> ``select`` -> ``broadcast`` -> local training -> Y = W X with W from
    ``mixing`` -> ``refine``. The messages are in ``strategies.round``, the rounds in
    ``strategies.run``; what updates pass through, and who reads them, in ``fedpers.channels``.

    A mean by ``weights`` is taken as the updates come, and none of them is kept. A method that
    takes more says so in ``needs``, and finds the round's updates in ``updates``.

    Class attributes:
        Params: a dataclass of the method's own settings on the server (``strategy.params``).
        algorithm: the client side, by name or dotted path. Default: the strategy's own name.
        shares: the slots of the model that the server keeps, mixes and sends.
        weights: of the updates: by number of ``examples``, ``equal``, or the method's ``own``, as
            its ``mixing`` has them.
        reports: what clients report beside their updates, as the client side declares it; found in
            ``report["method"]``.
        polls: likewise what they say to a poll; found in ``polled``.

    Attributes:
        parts: the global parts, opaque where the channel hides them.
        rows: what was made for single clients: theirs alone, and never a global model.
        updates: of the round that is refined, by client, in the roster's order; empty where they
            are added up as they come.
        reported: the reports of the round that is refined, by client.
        channel: for what the method needs of updates, see ``fedpers.channels.base.Channel``.
        polled: what clients said to the round's poll, by client.
        similarity: [K, K], of the clients, where a method has it, for the report.
        known: what all clients have, in the clear, beside what each receives: estimates of sums,
            and what was chosen; their working parts.
        pools: asks all clients for a vector, see ``strategies.pooling.Pools``.
    """

    Params: ClassVar[type] = NoParams
    algorithm: ClassVar[str | None] = None
    shares: tuple[str, ...] = ("body", "head")
    weights: str = "examples"
    reports: ClassVar[tuple[Stat, ...]] = ()
    polls: ClassVar[tuple[Stat, ...]] = ()

    def __init__(self, config: Config, model: PersonalModel, data: FederatedData) -> None:
        """Bind the method to a run.

        Args:
            config: the run's settings.
            model: a model as every client builds it; its slots are the first global parts.
            data: for its public split; the server never reads a client's examples.
        """
        self.params: Any = self.check(config, data)
        self.config, self.model, self.public = config, model, data.public
        self.task, self.schema, self.remark = data.task, data.schema, data.remark
        self.needed = self.needs(self.params)
        self.extend(model)
        self.shares = tuple(slot for slot in self.shares if slot in model.slots)
        self.parts: Row = self.first({slot: model.read(slot) for slot in self.shares})
        self.layouts: dict[str, Layout] = dict(self.parts.layouts)
        self.rows: dict[str, Row] = {}
        self.updates: Mapping[str, Row] = {}
        self.reported: Mapping[str, Mapping[str, Any]] = {}
        self.polled: Mapping[str, Mapping[str, float]] = {}
        self.similarity: Tensor | None = None
        self.known = Parts()
        self.channel: Channel = channel_of(self)
        self.ask: Asks = nobody  # the run gives another, and
        self.pools: Pooling = NoPools()

    @classmethod
    def check(cls, config: Config, data: FederatedData) -> Any:
        """The method's own parameters, after refusing settings that it cannot run with.

        A method with further needs (public data, say) adds its checks.

        Raises:
            ConfigError: naming the setting.
        """
        params = cls.own_params(config)
        if config.model.whiten == "sums":
            check_pools(config, "model.whiten", "sums", "public")
        needed = cls.needs(params)
        settle(config, needed, cls.weights, len(data.clients))
        check_channel(config, needed, cls.weights)
        return params

    @classmethod
    def own_params(cls, config: Config) -> Any:
        """``strategy.params`` as far as this side of the method takes them: others may be the
        client side's, which refuses what is unknown.

        Raises:
            ConfigError: naming one that cannot be.
        """
        given = config.strategy.params
        return params_of(cls.Params, {n: given[n] for n in cls.param_names() if n in given})

    @classmethod
    def needs(cls, params: Any) -> Needs:
        """What the server needs of updates beyond their mean. Default: nothing."""
        return Needs()

    # -- a round -------------------------------------------------------------------------------

    def extend(self, model: PersonalModel) -> None:
        """Add the method's own slots to the model. Default: none."""

    def first(self, parts: Mapping[str, Part]) -> Parts:
        """The first global parts, from the model's. Default: as they are.

        A bank is copies of a slot, ``body@0`` and so on (``fedpers.parts.bank``), which are mixed
        each of those who trained it, see ``Needs.banks``.
        """
        return Parts(parts)

    def poll(self, server_round: int, clients: Sequence[str]) -> Sequence[str]:
        """Who is asked, before the selection, for what the client side's ``poll`` says: it comes
        into ``polled``. Default: nobody."""
        return ()

    def select(self, server_round: int, clients: Sequence[str]) -> list[str]:
        """Who takes part. Default: a seeded uniform sample of ``strategy.fraction``."""
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

    def says(self, server_round: int, client: str) -> Mapping[str, Any]:
        """What is said to this client alone, JSON-able; its side finds it in ``context.said``.
        Default: nothing."""
        return {}

    def mixing(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> Mixing:
        """W, from plaintext reports only. Default: one row, by ``weights``. A method that overrides
        it says ``weights = "own"``, or in its needs that it has rows for single clients."""
        return Mixing(self.weighed(reports)[None])

    def weighed(self, reports: Mapping[str, Mapping[str, Any]]) -> Tensor:
        """The weights [K] that ``weights`` declares; all alike if nobody has examples."""
        if self.weights == "equal":
            return Mixing.equal(len(reports)).weights[0]
        weights = torch.tensor([self.weight_of(report) for report in reports.values()])
        if not bool(weights.sum() > 0):
            weights = torch.ones_like(weights)
        return weights / weights.sum()

    def weight_of(self, report: Mapping[str, Any]) -> float:
        """Of an update in the default mixing, before they are divided by their sum."""
        return 1.0 if self.weights == "equal" else float(report["examples"])

    def put(self, mixing: Mixing, rows: Sequence[Row]) -> None:
        """Take up the mixtures: for single clients into ``rows``, the one for None into ``parts``.

        Raises:
            ValueError: other recipients than mixtures.
        """
        for recipient, row in zip(mixing.recipients, rows, strict=True):
            if recipient is None:
                self.parts = row
            else:
                self.rows[recipient] = row

    def settle(self, server_round: int) -> None:
        """After the last round, before it is evaluated: what is estimated or chosen for all clients
        by sums over them (``pools``), put into ``known``. Default: nothing."""

    def refine(self, server_round: int) -> None:
        """A server step after the mixing. Default: none."""

    # -- what a channel asks of a method ---------------------------------------------------------

    @property
    def weighted(self) -> str:
        """How updates weigh in the end: ``equal``, by ``examples``, or the method's ``own``."""
        privacy = self.config.privacy
        uniform = privacy.by_client or (privacy.enabled and privacy.weights == "uniform")
        return "equal" if self.weights != "own" and uniform else self.weights

    def derived_layouts(self) -> Mapping[str, Layout]:
        """Of the parts named in ``Needs.derived``. Default: none."""
        return {}

    def derive(self, name: str, update: Parts) -> Part:
        """Such a part of one update, where the server reads it; where not the client makes it, in
        its ``derived``."""
        raise NotImplementedError(name)

    # -- from round to round ---------------------------------------------------------------------

    def common(self, received: Mapping[str, Row]) -> bool:
        """Whether all clients receive the same, and none a row that was made for it: only then is
        what they receive a global model."""
        first = next(iter(received.values()), None)
        made = any(parts is self.rows.get(client) for client, parts in received.items())
        return not made and all(same(first, parts) for parts in received.values())

    def state(self) -> State:
        """What the next round needs to know of those before it: parts by name, JSON-able values.

        A method that remembers more adds it here and in ``load_state``.
        """
        groups: dict[str, Row] = {"parts": self.parts}
        groups |= {"known": self.known} if self.known else {}
        return groups | {f"row {client}": parts for client, parts in self.rows.items()}, {}

    def load_state(self, state: State) -> None:
        """Go on from what ``state`` returned."""
        groups, _ = state
        self.parts, self.rows = groups["parts"], members(groups, "row")
        known = groups.get("known", Parts())
        self.known = known if isinstance(known, Parts) else Parts()

    # -- names -----------------------------------------------------------------------------------

    @classmethod
    def client_side(cls) -> str:
        """The name of the client's algorithm: ``algorithm``, or that of the nearest registered
        strategy that this one derives from."""
        if cls.algorithm is not None:
            return cls.algorithm
        names = (strategies.name_of(base) for base in cls.__mro__)
        return next((name for name in names if ":" not in name), "fedavg")

    @classmethod
    def param_names(cls) -> list[str]:
        """The names in ``strategy.params`` that this side of the method takes."""
        return sorted(field.name for field in fields(cls.Params))


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
