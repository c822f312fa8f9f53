"""A task: what is learned, by which loss, and how predictions are scored.

Nothing outside of a task's own files knows whether it predicts classes or numbers: the model asks
it for a head, the trainer for a loss, a client for the tally of its predictions, and the report for
its metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from fedpers.config import Columns, TaskSettings
from fedpers.outputs import Outputs
from fedpers.params import NoParams, params_of
from fedpers.registry import Registry

MODES = ("personal", "global", "gated", "local", "base")
"""Which model predicts: the client's own, the server's, the gate's mixture of both, one trained on
the client alone, or the one that training starts from."""


class Tally(ABC):
    """Sums over one client's predictions on one split, from which every metric is computed.

    Attributes:
        n: examples, >= 0.
    """

    n: int

    @property
    @abstractmethod
    def modes(self) -> Collection[str]:
        """The modes that were evaluated."""

    @abstractmethod
    def wins(self, mode: str, over: str) -> int:
        """On how many examples ``mode`` is better than ``over``; one of them is "global"."""

    @abstractmethod
    def stakes(self, over: str) -> tuple[int, int]:
        """How many examples another model could win from ``over``, and how many lose to it."""

    @abstractmethod
    def with_gated(self, mode: str) -> Self:
        """The tally with the mode "gated" beside the others, which is ``mode`` by another name."""

    @abstractmethod
    def brief(self) -> Self:
        """The tally without what only some metrics need: for manifests."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` reads it back."""

    @classmethod
    @abstractmethod
    def from_json(cls, data: Any) -> Self:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or sums that cannot be.
        """


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure made of tallies.

    Attributes:
        label: its name on pages and in tables.
        of: from tallies, which are added up, and a mode; None where they do not have it.
        better: "higher" or "lower".
        unit: "share", in 0..1 and shown in percent; "target", in the unit of what is predicted; or
            "none", a number without a unit.
        meaning: what it is, in a line.
        told: in a sentence about a model, with {} for the value; the headline's only.
        compared: whether a comparison of methods shows it.
        pools: whether it is shown over all examples, else as the mean over clients.
        less: of one tally, ``mode`` less ``over``; where that is finer than two calls of ``of``.
    """

    label: str
    of: Callable[[Sequence[Any], str], float | None]
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["share", "target", "none"] = "share"
    meaning: str = ""
    told: str = ""
    compared: bool = True
    pools: bool = False
    less: Callable[[Any, str, str], float] | None = None

    def gain(self, tally: Tally, mode: str, over: str) -> float | None:
        """By how much ``mode`` is better than ``over`` in one tally; negative where it is worse."""
        if self.less is not None:
            difference = self.less(tally, mode, over)
        else:
            own, base = self.of([tally], mode), self.of([tally], over)
            if own is None or base is None:
                return None
            difference = own - base
        return difference if self.better == "higher" else -difference


class Task(ABC):
    """What is learned. A subclass is registered, or named by its dotted path in ``task.name``.

    A model whose whole outputs are too large to be kept for all examples (a language model's, of a
    word a token) puts into ``Outputs.scores`` what loss and tally read of them, as the
    log-probability [batch, tokens] of each target token.

    Class attributes:
        Params: a dataclass of the task's own settings (``task.params``).
        tally_type: its sums.
        metrics: by the name that the report has them under, the headline first.
        predicts_text: targets are the tokens of the text itself: there is no column of labels.
        has_base: a model is of use before it is trained, and others are compared with it.

    Attributes:
        names: of the classes by number, or of the target.
        unit: of what is predicted, or "".
    """

    Params: ClassVar[type] = NoParams
    tally_type: ClassVar[type[Tally]]
    metrics: ClassVar[Mapping[str, Metric]]
    predicts_text: ClassVar[bool] = False
    has_base: ClassVar[bool] = False
    names: tuple[str, ...]
    unit: str = ""

    # -- from data to targets -----------------------------------------------------------------

    @classmethod
    @abstractmethod
    def encode(
        cls, values: Sequence[Any] | NDArray[Any], where: str, columns: Columns, params: Any
    ) -> tuple[Self, Tensor]:
        """The task that a table's column makes, and its targets [n, ...].

        Args:
            values: the column.
            where: the file and column, for messages.
            columns: what the user says of the table's columns.
            params: an instance of ``Params``.

        Raises:
            DataError: values that are no targets of this task.
        """

    @classmethod
    @abstractmethod
    def of(cls, targets: Tensor, params: Any) -> Self:
        """The task that targets [n, ...] make whose source gave no names.

        Raises:
            DataError: they are no targets of this task.
        """

    def fitted(self, public: Tensor) -> Self:
        """The task with what it takes from public targets, such as a scale. Default: nothing."""
        return self

    def scaled(self, targets: Tensor) -> Tensor:
        """Targets as they are trained on and handed to all that follows. Default: as they are."""
        return targets

    @abstractmethod
    def strata(self, targets: Tensor) -> Tensor:
        """For each target the stratum, int64 [n], by which partitioners deal unevenly."""

    @abstractmethod
    def settings(self) -> TaskSettings:
        """The settings that make this very task of another owner's data."""

    @property
    @abstractmethod
    def described(self) -> str:
        """What is learned, in a few words."""

    @property
    def about(self) -> str:
        """What the log says of the task when a run starts; "" for nothing."""
        return ""

    # -- the model ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many scores a head has for an example."""

    def head(self, width: int) -> nn.Linear | None:
        """The layer from features [batch, width] to scores, as PyTorch initialises it; None where
        a model comes with one (``Backbone.read_out``)."""
        return nn.Linear(width, self.outputs)

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The loss of each example, [batch]; pure, and never across the batch."""

    @abstractmethod
    def divergence(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """How far scores are from a teacher's, both [batch, outputs]: a mean, for distillation."""

    def unscaled(self, head: nn.Linear) -> None:
        """Change a head that is given away, in place, so that it predicts in the target's unit.
        Default: it does."""
        return

    @abstractmethod
    def made_up(self, count: int, generator: Any) -> Tensor:
        """Targets [count, ...] of no data, for checks and canaries."""

    def made_up_scores(self, count: int, generator: Any) -> Tensor:
        """Scores [count, outputs] of no model."""
        import torch

        return torch.randn(count, self.outputs, generator=generator)

    # -- predictions --------------------------------------------------------------------------

    @abstractmethod
    def tally(self, scores: Mapping[str, Tensor], targets: Tensor, *, detail: bool = True) -> Tally:
        """The tally of scores [n, ...] by mode against targets [n, ...], all on one device.

        Args:
            detail: with what only some metrics need.
        """

    @abstractmethod
    def confidence(self, scores: Tensor, targets: Tensor) -> Tensor:
        """How well each example is predicted, [n], on a scale on which that is about normal: what
        membership inference compares."""

    @abstractmethod
    def read(self, scores: Tensor) -> list[str]:
        """What a model predicts for each example, in words."""

    @property
    @abstractmethod
    def reading(self) -> str:
        """What ``read`` gives, for the head of a table."""

    @classmethod
    def further(cls, results: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Further fields of the report, from the clients' test tallies by mode. Default: none."""
        return {}

    @classmethod
    def make_up(cls, tally: Any) -> list[int] | None:
        """The examples of a tally by ``names``, where it counts them."""
        return None

    @classmethod
    def modes(cls) -> tuple[str, ...]:
        """The modes that a report has of this task."""
        return tuple(mode for mode in MODES if mode != "base" or cls.has_base)

    @classmethod
    def headline(cls) -> tuple[str, Metric]:
        """The metric by which models are compared, and its name."""
        return next(iter(cls.metrics.items()))


TASKS: Registry[type[Task]] = Registry(
    "task", key="task.name", package="fedpers.tasks", group="fedpers.tasks"
)


def task_named(settings: TaskSettings) -> tuple[type[Task], Any]:
    """The task that settings name, and its checked parameters.

    Raises:
        ConfigError: no such task, or a parameter that it does not take.
    """
    found = TASKS.get(settings.name)
    return found, params_of(found.Params, settings.params, key="task.params")
