"""A channel: what an update passes through on its way into the mixture.

It wraps; a method does not know in which channel it is. What it needs of updates beyond their mean
it declares (``Needs``), and asks the channel for; a channel that cannot serve it refuses the run.
Each channel has two halves: ``Channel`` at the server, ``NodeChannel`` where the clients are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from fedpers.channels.node import NodeChannel
from fedpers.channels.wire import Answers, Wire
from fedpers.config import Config
from fedpers.mixing import Mixing
from fedpers.parts import Layout, Part, Parts
from fedpers.records import Row
from fedpers.stats import Stat
from fedpers.streaming import StreamingMean

State = tuple[dict[str, Row], dict[str, Any]]
"""Parts by name, and JSON-able values: what a checkpoint holds."""


@dataclass(frozen=True)
class Needs:
    """What a method's server needs of updates beyond a mean by ``weights``.

    Attributes:
        single_updates: what it reads of single clients' updates, in words ("every client's loss");
            None for nothing. Only a server in the clear has them.
        rows: its mixing has mixtures for single clients.
        compares: the slot whose rows are compared between clients (``Channel.compare``), if any.
        derived: parts that are made of each update alone (scores on public examples, say), of which
            it takes the mean (``Channel.derived``).
        banks: slots of which there are several copies, each mixed of those who trained it.
        instead: how to do without, for the error ("set strategy.params.distill=false").
    """

    single_updates: str | None = None
    rows: bool = False
    compares: str | None = None
    derived: tuple[str, ...] = ()
    banks: tuple[str, ...] = ()
    instead: str | None = None

    @property
    def reads(self) -> str | None:
        """What a server in the clear reads of single updates, in words; None if it only mixes."""
        found = [self.single_updates] if self.single_updates else []
        found += [f"every client's {self.compares}"] if self.compares and not found else []
        found += [f"every client's {name}" for name in self.derived]
        if not found:
            return None
        return ", ".join([" and ".join(found), *([self.instead] if self.instead else [])])


class Method(Protocol):
    """What a channel asks of the server side of a method."""

    config: Config
    layouts: dict[str, Layout]
    """Of the parts that are shared."""
    reports: ClassVar[tuple[Stat, ...]]
    """The numbers that its clients report."""
    needed: Needs

    @property
    def weighted(self) -> str:
        """How updates weigh: ``equal``, by ``examples`` and nothing else, or as the method's
        ``own`` mixing says."""

    def derived_layouts(self) -> Mapping[str, Layout]:
        """Of the parts in ``needed.derived``."""

    def derive(self, name: str, update: Parts) -> Part:
        """Such a part, made by a server that reads the update."""


@dataclass(frozen=True)
class Reveals:
    """In words: what is learned of a client by whom, beyond the mixtures that all receive."""

    server: str
    nodes: str


class Opening(NamedTuple):
    """A run that begins.

    Attributes:
        wire: to reach its nodes.
        clients: how many take part.
        said: by node, what its half said of itself, ``NodeChannel.introduction``.
        state: the folder of what outlives rounds.
        resumed: whether the run goes on from a checkpoint, see ``Channel.load_state``.
    """

    wire: Wire
    clients: int
    said: Mapping[int, Mapping[str, Any]]
    state: Path
    resumed: bool = False


class Turn(NamedTuple):
    """A round: its number, whom it asked, and what those received who have no mixture of their
    own."""

    server_round: int
    asked: Sequence[str]
    sent: Row


@dataclass
class Mixed:
    """What became of a round's updates.

    Attributes:
        rows: the mixtures, in the order of ``Mixing.recipients``.
        failures: why updates had to be left out after all.
        unused: why nothing can be used, if so.
        report: the mean of the clients' reports, where single ones are hidden.
    """

    rows: Sequence[Row] = ()
    failures: dict[str, str] = field(default_factory=dict)
    unused: str | None = None
    report: Mapping[str, Any] | None = None


class Channel(ABC):
    """The server's half.

    Class attributes:
        node: the other half, made without arguments; of a channel that ``channel`` names.
        name: as the settings, the log and the report call it.
        reveals: who learns what.
        in_the_clear: whether single updates can be read, and nothing is added to their mean.
        splits: whether a node may answer for its clients in several messages.
        hides_reports: whether clients' reports come as their mean alone, see ``Mixed.report``.
        fewest: updates that a mixture of the round is made of, at the least; with fewer nothing
            may be opened.
        adds_noise: whether its sums are of integers, to which clients add shares of the noise where
            privacy is by client, see ``take_noise``.
    """

    name: ClassVar[str]
    node: ClassVar[type[NodeChannel]]
    reveals: ClassVar[Reveals]
    in_the_clear: ClassVar[bool] = False
    splits: bool = False
    hides_reports: bool = False
    fewest: int = 1
    adds_noise: ClassVar[bool] = False

    def __init__(self, method: Method) -> None:
        self.method, self.config = method, method.config

    @classmethod
    @abstractmethod
    def check(cls, config: Config, needs: Needs, weighted: str) -> None:
        """Refuse a method that this channel cannot serve.

        Raises:
            ConfigError: naming what it needs, and the cure.
        """

    @classmethod
    def check_clients(cls, config: Config, needs: Needs, clients: int) -> None:
        """Refuse more clients than there is room for, or files that cannot be used.

        Args:
            needs: of the method.
            clients: how many there are.

        Raises:
            ConfigError: naming the setting and the cure.
        """

    @classmethod
    def deal(
        cls, config: Config, needs: Needs, clients: int, server: Path, nodes: Mapping[str, Path]
    ) -> Config:
        """Make the keys that the channel takes; the settings of a server that has them. Default:
        it takes none.

        Args:
            server: a folder to make for the server's half.
            nodes: by client, a folder to make for its node.
        """
        return config

    @classmethod
    def described(cls, keys: Path | None) -> str:
        """What there is to say of what a device has for the channel; "" for nothing.

        Args:
            keys: the folder with its key, if it has one.

        Raises:
            ConfigError: what it lacks.
        """
        return ""

    # -- before the rounds, and between them ---------------------------------------------------

    def open(self, opening: Opening) -> None:
        """Take up the run, its nodes being there.

        Raises:
            FedpersError: nodes that cannot work together, or settings that protect nobody.
        """

    def admits(self, said: Mapping[str, Any]) -> str | None:
        """Why a node that comes later cannot take part; None if it can.

        Args:
            said: what its half said of itself.
        """
        return None

    def cohort(self, server_round: int, clients: Sequence[str]) -> list[str] | None:
        """Who takes part, where that hangs on the channel; None leaves it to the method."""
        return None

    def begin(self, server_round: int, cohort: Sequence[str]) -> None:
        """Before a round asks its cohort: what has to be charged, or changed, by then.

        Raises:
            BudgetSpent: nothing may be released any more.
            ConfigError: so few clients cannot be protected.
        """

    def header(self, asked: Sequence[str]) -> dict[str, Any]:
        """What the nodes' half is told with every message; nothing, where it needs nothing."""
        return {}

    def foresee(self, clients: Sequence[str]) -> dict[str, float]:
        """Each client's weight in the round that begins, 1 at most, where its half has to know."""
        return {}

    def take_noise(self, sigma: float) -> None:
        """Have clients add noise to sums, in shares; only where it ``adds_noise``.

        Args:
            sigma: noise multiplier of the whole.

        Raises:
            ConfigError: sums have no room for it.
        """

    def corrupted(self, cohort: int) -> int:
        """How many of a cohort may work with the server, so that the noise has to be whole without
        them."""
        return 0

    # -- one round -------------------------------------------------------------------------------

    @property
    def later(self) -> bool:
        """Whether updates come only when their weights are known, after the training."""
        return False

    def stream(self, size: int) -> StreamingMean | None:
        """A mean of ``size`` updates that is taken as they come, so that they are never there all
        at once; None where they are kept."""
        return None

    @abstractmethod
    def accept(self, client: str, sent: Row, update: Row) -> str | None:
        """Why a client's update cannot be mixed with others; None if, as far as one can see, it
        can.

        Args:
            sent: what the client received.
        """

    def gather(
        self, server_round: int, mixing: Mixing, reports: Mapping[str, Any], answers: Answers
    ) -> None:
        """Have the updates sent that were kept for ``later``; they are put into ``answers``."""

    @abstractmethod
    def mix(self, turn: Turn, mixing: Mixing, updates: Mapping[str, Row]) -> Mixed:
        """Y = W X."""

    def least(self, clients: int) -> int:
        """The fewest updates that are mixed, of ``strategy.min_clients``."""
        return clients

    # -- what a method asks for ------------------------------------------------------------------

    @abstractmethod
    def reveal(self, row: Row) -> Parts:
        """The last mixture in the clear.

        Raises:
            RunError: nobody could open it.
        """

    @abstractmethod
    def derived(self, name: str) -> Part:
        """The mean of a derived part, by the weights of the last mixture; after ``reveal``."""

    @abstractmethod
    def compare(
        self, models: Mapping[str, Row], weights: Callable[[Mapping[str, Parts]], Tensor]
    ) -> dict[str, Tensor]:
        """For each client its weights [K] of all K in ``models``, by how alike their slot
        ``Needs.compares`` is.

        A client of whom nobody can tell has none.

        Args:
            models: the last update of each client.
            weights: [K, K] from all of them, where a server can read them; where it cannot, the
                method's client side says what becomes of cosines (``LocalAlgorithm.weights_of``).
        """

    @abstractmethod
    def mix_slots(self, weights: Tensor, updates: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """Mixtures [R] of some slots of single updates, with weights [R, K]."""

    @abstractmethod
    def join(self, row: Row, update: Row, names: Sequence[str]) -> Row:
        """``row`` with some slots of one update beside it."""

    # -- what is kept and told -------------------------------------------------------------------

    def state(self) -> State:
        """What the next round needs to know of those before it."""
        return {}, {}

    def load_state(self, groups: Mapping[str, Row], values: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, of whose ``groups`` all were made by this channel.

        Raises:
            ConfigError: they were made under another key.
        """

    def spending(self) -> dict[str, Mapping[str, Any]]:
        """What was spent of the budget that the channel keeps, by whose it is; none if it keeps
        none."""
        return {}

    def figures(self) -> dict[str, Any]:
        """What the report says of it, by section."""
        return {}

    def notes(self) -> list[str]:
        """Whom one has to trust, for the report of a private run."""
        return []

    def close(self) -> None:
        """After the run: have the nodes throw away what was made for it."""
