"""Regression: one number for each example, by squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpers.config import Columns, TaskSettings
from fedpers.errors import ConfigError, DataError
from fedpers.outputs import Outputs
from fedpers.params import setting
from fedpers.tasks.base import TASKS, Metric, Task
from fedpers.tasks.columns import column_of
from fedpers.tasks.squares import Errors

STRATA = 10  # tenths of all targets, by which partitioners deal


@dataclass
class RegressionParams:
    """The target, and the scale on which it is learned.

    ``mean`` and ``sd``: of the target, as far as they are known to everybody; null: those of the
    public examples. ``tolerance``, in the target's unit: a model wins an example from another where
    its error is smaller by more. ``name`` and ``unit``: for tables and pages; the column's name if
    none is given.
    """

    name: str = ""
    unit: str = ""
    mean: float | None = None
    sd: float | None = setting(None, above=0)
    tolerance: float = setting(0.0, least=0)


def rmse(tallies: Sequence[Errors], mode: str) -> float | None:
    """The root of the mean squared error, in the target's unit."""
    examples = sum(tally.n for tally in tallies)
    return sqrt(sum(t.squared[mode] for t in tallies) / examples) if examples else None


def mae(tallies: Sequence[Errors], mode: str) -> float | None:
    """The mean absolute error, in the target's unit."""
    examples = sum(tally.n for tally in tallies)
    return sum(t.absolute[mode] for t in tallies) / examples if examples else None


def r_squared(tallies: Sequence[Errors], mode: str) -> float | None:
    """R² = 1 - sum of squared errors / sum of squares around the mean of these very targets, at
    most 1; None where they are all the same."""
    around = sum(t.squares for t in tallies)
    examples, total = sum(t.n for t in tallies), sum(t.total for t in tallies)
    spread = around - total**2 / examples if examples else 0.0
    if examples < 2 or spread <= 1e-12 * around:
        return None
    return 1 - sum(t.squared[mode] for t in tallies) / spread


@TASKS.register("regression")
class Regression(Task):
    """Targets are numbers, learned as (y - mean) / sd, float32 [n]; scores are predictions [n, 1]
    on that scale, and are told in the target's unit.

    Args:
        params: name, unit, tolerance, and mean and sd where they are known.
        seen: of how many public examples mean and sd are; 0 where they were declared.
    """

    Params = RegressionParams
    tally_type = Errors
    metrics: ClassVar[Mapping[str, Metric]] = {
        "rmse": Metric(
            label="RMSE",
            of=rmse,
            better="lower",
            unit="target",
            meaning="the root of the mean squared error",
            told="has a root mean squared error of {} on",
        ),
        "mae": Metric(
            label="MAE",
            of=mae,
            better="lower",
            unit="target",
            pools=True,
            meaning="the mean absolute error; all clients together",
        ),
        "r2": Metric(
            label="R²",
            of=r_squared,
            unit="none",
            pools=True,
            meaning="1 less the squared errors’ share of the squares around the mean; all clients "
            "together",
        ),
    }

    def __init__(self, params: RegressionParams, seen: int = 0) -> None:
        self.params, self.seen = params, seen
        self.names, self.unit = (params.name,), params.unit

    @classmethod
    def encode(
        cls,
        values: Sequence[Any] | NDArray[Any],
        where: str,
        columns: Columns,
        params: RegressionParams,
    ) -> tuple[Self, Tensor]:
        """Integers and floats, as float64."""
        numbers = column_of(values, where)
        if numbers.ndim != 1 or len(numbers) == 0 or numbers.dtype.kind not in "iuf":
            got = f"{numbers.dtype} of shape {numbers.shape}"
            cure = "; for classes leave task.name out" if numbers.dtype.kind in "bU" else ""
            raise DataError(f"{where}: got {got}, takes one number an example{cure}")
        targets = torch.from_numpy(numbers.astype(np.float64))
        return cls(replace(params, name=params.name or columns.label)), targets

    @classmethod
    def of(cls, targets: Tensor, params: RegressionParams) -> Self:
        """A target called "target"."""
        if targets.ndim != 1:
            got = f"shape {tuple(targets.shape)}"
            raise DataError(f"data: y: got {got}, takes one number an example")
        return cls(replace(params, name=params.name or "target"))

    def fitted(self, public: Tensor) -> Self:
        """With the mean and spread of public targets, unless both were declared."""
        mean, sd = self.params.mean, self.params.sd
        if mean is not None and sd is not None:
            return self
        known = public.double()[torch.isfinite(public)]
        if len(known) < 2 or float(known.std(correction=0)) == 0:
            missing, value = ("mean", mean) if mean is None else ("sd", sd)
            takes = "a number, where there are no public targets to take it from"
            cure = "declare task.params.mean and task.params.sd"
            raise ConfigError(f"task.params.{missing}", value, takes, cure)
        mean = float(known.mean()) if mean is None else mean
        sd = float(known.std(correction=0)) if sd is None else sd
        return type(self)(replace(self.params, mean=mean, sd=sd), len(known))

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and sd."""
        mean, sd = self.params.mean, self.params.sd
        return (0.0 if mean is None else mean), (1.0 if sd is None else sd)

    def scaled(self, targets: Tensor) -> Tensor:
        """(y - mean) / sd."""
        mean, sd = self.scale
        return ((targets.double() - mean) / sd).float()

    def strata(self, targets: Tensor) -> Tensor:
        """The tenth in which a target is, 0..9."""
        values = targets.double().nan_to_num()
        inner = torch.linspace(0, 1, STRATA + 1, dtype=torch.float64)[1:-1]
        edges = torch.from_numpy(np.quantile(values.numpy(), inner.numpy()))
        return torch.searchsorted(edges, values)

    def settings(self) -> TaskSettings:
        """With the scale."""
        return TaskSettings(TASKS.name_of(type(self)), asdict(self.params))

    @property
    def described(self) -> str:
        """What number."""
        return f"{self.names[0]}{f' in {self.unit}' if self.unit else ''}, a number"

    @property
    def about(self) -> str:
        """On which scale it is learned."""
        mean, sd = self.scale
        where = f"of {self.seen} public examples" if self.seen else "as declared"
        return f"regression: {self.names[0]} is scaled by mean {mean:g} and sd {sd:g}, {where}"

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The squared error, in units of the spread squared."""
        return (outputs.scores[:, 0] - targets).square()

    def divergence(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """The mean squared difference."""
        return (scores - teacher).square().mean()

    def unscaled(self, head: nn.Linear) -> None:
        """sd (W f + b) + mean."""
        mean, sd = self.scale
        with torch.no_grad():
            head.weight.mul_(sd)
            head.bias.mul_(sd).add_(mean)

    def made_up(self, count: int, generator: torch.Generator) -> Tensor:
        """Normal numbers."""
        return torch.randn(count, generator=generator)

    def tally(
        self, scores: Mapping[str, Tensor], targets: Tensor, *, detail: bool = True
    ) -> Errors:
        """Sums of errors, in the target's unit."""
        _, sd = self.scale
        predictions = {mode: sd * found[:, 0].double() for mode, found in scores.items()}
        return Errors.of(sd * targets.double(), predictions, self.params.tolerance, sd)

    def confidence(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Minus the logarithm of the absolute error."""
        return -(scores[:, 0] - targets).abs().clamp_min(1e-6).log()

    def read(self, scores: Tensor) -> list[str]:
        """The prediction, in the target's unit."""
        mean, sd = self.scale
        return [f"{mean + sd * float(score):.4g}" for score in scores[:, 0]]

    @property
    def reading(self) -> str:
        """The target, and its unit."""
        return f"{self.names[0]} in {self.unit}" if self.unit else self.names[0]
