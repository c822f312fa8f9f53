"""What a client reports of its regressions: sums of errors, of which every metric is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from fedpers.tasks.base import MODES
from fedpers.tasks.checks import MOST, check_between, check_count, check_modes, check_sum
from fedpers.tasks.won import WonTally, won_of

if TYPE_CHECKING:
    from torch import Tensor

FARTHEST = 1e6  # spreads: how far off a model that broke down is counted at most
LARGEST = 1e150  # of a sum: its square is still a number


@dataclass(frozen=True)
class Errors(WonTally):
    """One client's errors e = prediction - target on one split.

    Args:
        n: examples, >= 0.
        squared, absolute: by mode, the sums of e² and |e|; a mode that was not evaluated is absent.
        total, squares: the sums of the targets and of their squares, both less the same number.
        won: won[mode][over], on how many examples the error of ``mode`` is smaller than that of
            ``over`` by more than the task's tolerance, for each pair of modes.

    Raises:
        ValueError: the sums cannot come from n examples.
    """

    n: int
    squared: dict[str, float]
    absolute: dict[str, float]
    total: float
    squares: float
    won: dict[str, dict[str, int]]

    def __post_init__(self) -> None:
        check_count("n", self.n, MOST)
        check_modes("squared", self.squared, set(MODES), subset=True)
        modes = set(self.squared)
        check_modes("absolute", self.absolute, modes)
        for mode in modes:
            check_sum(f"squared.{mode}", self.squared[mode], LARGEST if self.n else 0)
            # By Cauchy and Schwarz, and as the largest of them is at most their sum.
            root = self.squared[mode] ** 0.5
            check_between(f"absolute.{mode}", self.absolute[mode], root, root * self.n**0.5)
        self.check_won(modes)
        check_sum("squares", self.squares, LARGEST if self.n else 0)
        most = (self.n * self.squares) ** 0.5
        check_between("total", self.total, -most, most)

    @classmethod
    def of(
        cls, targets: Tensor, predictions: Mapping[str, Tensor], tolerance: float, spread: float
    ) -> Self:
        """The sums of predictions [n], by mode, of targets [n], all on one device.

        Args:
            tolerance: by how much an error must be smaller to win, >= 0.
            spread: of targets: a prediction that is no number is counted as a million of them off.

        Raises:
            ValueError: a shape differs from that of the targets, or an unknown mode.
        """
        far, errors = FARTHEST * spread, dict[str, Any]()
        for mode, predicted in predictions.items():
            if targets.ndim != 1 or predicted.shape != targets.shape:  # [n, 1] would broadcast
                got = f"{tuple(predicted.shape)} for targets {tuple(targets.shape)}"
                raise ValueError(f"predictions.{mode}: got {got}, takes [n] for targets [n]")
            off = (predicted - targets).double().nan_to_num(far, far, -far)
            errors[mode] = off.clamp(-far, far).abs()
        won = won_of(errors, lambda own, other: own < other - tolerance)
        known = targets.double().nan_to_num(0.0, far, -far)
        return cls(
            len(targets),
            {mode: float(e.square().sum()) for mode, e in errors.items()},
            {mode: float(e.sum()) for mode, e in errors.items()},
            float(known.sum()),
            float(known.square().sum()),
            won,
        )

    @property
    def modes(self) -> Collection[str]:
        """The modes of ``squared``."""
        return self.squared

    def with_gated(self, mode: str) -> Self:
        """As ``mode``, which it neither wins from nor loses to."""
        return replace(
            self,
            squared={**self.squared, "gated": self.squared[mode]},
            absolute={**self.absolute, "gated": self.absolute[mode]},
            won=self.won_with_gated(mode),
        )
