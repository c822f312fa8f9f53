"""What a client reports of its regressions: sums of errors, of which every metric is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from fedpers.tasks.base import MODES, Tally
from fedpers.tasks.checks import MOST, check_between, check_count, check_modes, check_sum, fields

if TYPE_CHECKING:
    from torch import Tensor

FARTHEST = 1e6  # spreads: how far off a model that broke down is counted at most
LARGEST = 1e150  # of a sum: its square is still a number


@dataclass(frozen=True)
class Errors(Tally):
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
        check_modes("won", self.won, modes)
        for mode in modes:
            check_sum(f"squared.{mode}", self.squared[mode], LARGEST if self.n else 0)
            # By Cauchy and Schwarz, and as the largest of them is at most their sum.
            root = self.squared[mode] ** 0.5
            check_between(f"absolute.{mode}", self.absolute[mode], root, root * self.n**0.5)
            check_modes(f"won.{mode}", self.won[mode], modes - {mode})
        for mode in modes:
            for over in modes - {mode}:
                check_count(f"won.{mode}.{over}", self.won[mode][over], self.n)
                rest = self.n - self.won[mode][over]
                check_count(f"won.{over}.{mode}", self.won[over][mode], rest)
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
        won = {
            mode: {
                over: int((own < other - tolerance).sum())
                for over, other in errors.items()
                if over != mode
            }
            for mode, own in errors.items()
        }
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

    def wins(self, mode: str, over: str) -> int:
        """On how many examples the error of ``mode`` is smaller."""
        return self.won[mode][over]

    def stakes(self, over: str) -> tuple[int, int]:
        """Every example can be won, and lost."""
        return self.n, self.n

    def with_gated(self, mode: str) -> Self:
        """As ``mode``, which it neither wins from nor loses to."""
        won = {m: {**row, "gated": row.get(mode, 0)} for m, row in self.won.items()}
        return replace(
            self,
            squared={**self.squared, "gated": self.squared[mode]},
            absolute={**self.absolute, "gated": self.absolute[mode]},
            won={**won, "gated": {**self.won[mode], mode: 0}},
        )

    def brief(self) -> Self:
        """As it is."""
        return self

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` reads it back."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """What ``to_json`` wrote, checked: it may come from a remote client.

        Raises:
            ValueError: not such an object, or sums that cannot be.
        """
        return cls(**fields(data, *cls.__dataclass_fields__))
