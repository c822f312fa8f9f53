"""The mean of updates that come one after another, in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpers.parts import Layout, Part, Parts, product

BLOCK = 64  # positions in a row whose updates are mixed in one product


@dataclass(frozen=True)
class _Block:
    """A block's mean by part, in float32, the sum of its weights, and how many updates it had."""

    mean: Mapping[str, Tensor]
    weight: float
    count: int


class StreamingMean:
    """The weighted mean sum_k w_k x_k / sum_k w_k; the plain one if all weights are zero.

    Each update has a position. A block of 64 positions in a row is mixed, as ``combine`` does it,
    as soon as it is known of each whether its update came, and its updates are dropped. Blocks
    are added in their order, in float64. The result thus depends, to the last bit, on positions,
    weights and updates alone, and not on the order in which they came; of a single block it is
    what ``combine`` gives.

    What is held is the updates of the blocks that are not complete: fed by position, less than one
    block; a position of which nothing is known keeps the updates of its block until ``result``.

    Args:
        layouts: of the updates, by part.
        size: how many positions there are.
        watch: called with the weights [n], which sum to 1, and the n updates of each block that is
            mixed, in the order of their positions, before they are dropped.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        size: int,
        watch: Callable[[Tensor, Sequence[Parts]], None] | None = None,
    ) -> None:
        self.layouts, self.watch = dict(layouts), watch
        self._unknown = [set(range(k, min(k + BLOCK, size))) for k in range(0, size, BLOCK)]
        self._updates: dict[int, dict[int, tuple[float, Parts]]] = {}  # by block and position
        self._mixed: dict[int, _Block | None] = {}  # blocks that wait for one before them
        self._next = 0  # the first block that is not in the sum
        self._sum: dict[str, Tensor] = {}
        self._divisor = self._weight = 0.0

    @property
    def held(self) -> int:
        """How many updates are held now."""
        return sum(len(updates) for updates in self._updates.values())

    def add(self, position: int, weight: float, update: Parts) -> None:
        """Take up an update.

        Args:
            position: 0..size - 1, each once.
            weight: >= 0, not normalised, such as a number of examples.
            update: finite, of the layouts given.

        Raises:
            ValueError: no such position, or it is known already.
        """
        block = self._know(position)
        self._updates.setdefault(block, {})[position] = weight, update
        self._mix_if_complete(block)

    def leave_out(self, position: int) -> None:
        """Note that no update will come for a position.

        Raises:
            ValueError: as ``add``.
        """
        self._mix_if_complete(self._know(position))

    def result(self) -> Parts:
        """The mean of what came, in the parts' own dtype. Nothing can be added afterwards.

        Raises:
            ValueError: nothing came.
        """
        for block in range(self._next, len(self._unknown)):
            self._unknown[block].clear()
            if block not in self._mixed:
                self._mix(block)
        if not self._divisor:
            raise ValueError("mean: got no update, takes one or more")
        return Parts(
            {
                name: Part(layout, (self._sum[name] / self._divisor).float().to(layout.dtype))
                for name, layout in self.layouts.items()
            }
        )

    def _know(self, position: int) -> int:
        block = position // BLOCK
        if not 0 <= block < len(self._unknown) or position not in self._unknown[block]:
            raise ValueError(f"position: got {position}, takes one that is not known yet")
        self._unknown[block].remove(position)
        return block

    def _mix_if_complete(self, block: int) -> None:
        if not self._unknown[block]:
            self._mix(block)

    def _mix(self, block: int) -> None:
        updates = self._updates.pop(block, {})
        in_order = [updates[position] for position in sorted(updates)]
        self._mixed[block] = self._mean(in_order) if in_order else None
        while self._next in self._mixed:
            mixed = self._mixed.pop(self._next)
            if mixed is not None:
                self._add(mixed)
            self._next += 1

    def _mean(self, given: Sequence[tuple[float, Parts]]) -> _Block:
        total, updates = sum(weight for weight, _ in given), [update for _, update in given]
        weights = torch.tensor([weight if total > 0 else 1.0 for weight, _ in given])
        weights = weights / weights.sum()
        if self.watch is not None:
            self.watch(weights, updates)
        mean = {name: product(weights[None], updates, name)[0] for name in self.layouts}
        return _Block(mean, total, len(updates))

    def _add(self, block: _Block) -> None:
        if self._weight and not block.weight:
            return
        if block.weight and not self._weight:  # beside it, what came before weighs nothing
            self._sum, self._divisor = {}, 0.0
        share = block.weight or block.count
        for name, mean in block.mean.items():
            scaled = mean.double().mul_(share)
            self._sum[name] = self._sum[name].add_(scaled) if name in self._sum else scaled
        self._divisor += share
        self._weight += block.weight
