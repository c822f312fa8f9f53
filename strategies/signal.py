"""Is there anything but noise in what private clients send?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedpers.parts import Part, Parts

log = logging.getLogger("fedpers")

Z = 3.0  # standard deviations by which a signal has to stand out of the noise


class SignalToNoise:
    """How far the shared parts have moved, against how far the noise alone would move them.

    Clients say how much noise (standard deviation a scalar) is in each part that they send. The
    mean update over rounds is a random walk of known variance plus whatever was learned; all of it
    has been released, so that looking at it costs nothing. Powers are squared norms.
    """

    def __init__(self) -> None:
        self.moved = Parts()
        self.variance: dict[str, float] = {}

    def note(
        self,
        server_round: int,
        sent: Parts,
        mixed: Parts,
        weights: Tensor,
        noises: list[Mapping[str, Any]],
    ) -> None:
        """Add a round.

        Args:
            sent: the parts before it, which all clients received.
            mixed: the parts after it.
            weights: of the K clients in the mean, [K].
            noises: by client and part, the standard deviation of the noise.
        """
        found = []
        for name, part in mixed.items():
            spreads = [noise.get(name) for noise in noises]
            if not all(isinstance(spread, float) for spread in spreads):
                continue
            variance = sum(float(w) ** 2 * s**2 for w, s in zip(weights, spreads, strict=True))  # type: ignore[operator]
            moved = part.vector.float() - sent[name].vector.float()
            before = self.moved[name].vector if name in self.moved else torch.zeros_like(moved)
            self.moved |= {name: Part(replace(part.layout, dtype=torch.float32), before + moved)}
            self.variance[name] = self.variance.get(name, 0.0) + variance
            now = float(moved.square().sum()) / max(variance * moved.numel(), 1e-30) - 1
            found.append(f"{name} {now:.2f}")
        if found:
            log.info("round %d: signal-to-noise of the mean: %s", server_round, ", ".join(found))

    def ratios(self) -> dict[str, float]:
        """By part: the power of the signal over that of the noise, over all rounds."""
        return {n: self._excess(n) / p for n in self.moved if (p := self._power(n)) > 0}

    def notes(self) -> list[str]:
        """A line for each part in which nothing stands out of the noise, with what to change.

        The squared norm of d scalars of variance v is v d, give or take v sqrt(2 d).
        """
        return [
            f"the updates of {name!r} cannot be told from noise: raise privacy.epsilon, take fewer "
            "privacy.steps or rounds, train fewer parameters, or have more clients or examples"
            for name, moved in self.moved.items()
            if self._excess(name) < Z * self.variance[name] * (2 * moved.layout.size) ** 0.5
        ]

    def _power(self, name: str) -> float:
        return self.variance[name] * self.moved[name].layout.size

    def _excess(self, name: str) -> float:
        return float(self.moved[name].vector.square().sum()) - self._power(name)
