"""Tallies that compare each model with each other example by example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fedpers.tasks.base import Tally
from fedpers.tasks.checks import check_count, check_modes, fields

if TYPE_CHECKING:
    from torch import Tensor

Won = dict[str, dict[str, int]]


class WonTally(Tally):
    """A frozen dataclass of sums, with ``won[mode][over]``: on how many examples ``mode`` is better
    than ``over``, for each pair of modes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    won: Won

    def wins(self, mode: str, over: str) -> int:
        """On how many examples ``mode`` is better."""
        return self.won[mode][over]

    def stakes(self, over: str) -> tuple[int, int]:
        """Every example can be won, and lost."""
        return self.n, self.n

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

    def check_won(self, modes: Collection[str]) -> None:
        """Refuse comparisons that cannot be of ``n`` examples in these modes.

        Raises:
            ValueError: a mode is missing or unknown, or two models are better on more examples than
                there are.
        """
        check_modes("won", self.won, {*modes})
        for mode in modes:
            check_modes(f"won.{mode}", self.won[mode], {*modes} - {mode})
        for mode in modes:
            for over in {*modes} - {mode}:
                check_count(f"won.{mode}.{over}", self.won[mode][over], self.n)
                rest = self.n - self.won[mode][over]
                check_count(f"won.{over}.{mode}", self.won[over][mode], rest)

    def won_with_gated(self, mode: str) -> Won:
        """``won`` with the mode "gated", which is ``mode``: it neither wins from it nor loses."""
        won = {m: {**row, "gated": row.get(mode, 0)} for m, row in self.won.items()}
        return {**won, "gated": {**self.won[mode], mode: 0}}


def won_of(each: Mapping[str, Tensor], better: Callable[[Tensor, Tensor], Tensor]) -> Won:
    """``won`` of what each mode makes of each example, [n].

    Args:
        better: of two modes' values, where the first is better, bool [n].
    """
    return {
        mode: {over: int(better(own, other).sum()) for over, other in each.items() if over != mode}
        for mode, own in each.items()
    }
