"""The privacy plan: is everything that leaves a client covered by its DP training?

Sample-level DP-SGD covers a release only if whatever influenced it was trained under DP itself, or
does not depend on the client's data. A head trained without noise, through which the gradients of
a released body flow, breaks the guarantee in silence. So before a run the plan follows the parts
through a round, again and again until nothing changes: a part trained without DP is tainted, and a
released phase that reads a tainted part, or an upload that is made of one, is refused.

Tainted parts are filled with NaN, so that whatever a method computes from them while it receives,
keeps or uploads is seen to be tainted as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from fedpers.errors import ConfigError
from fedpers.parts import Part, Parts
from fedpers.phases import Phase


class Method(Protocol):
    """What the plan needs to know of a client's algorithm."""

    def receive(self, broadcast: Parts, personal: Parts) -> Parts:
        """The working parts at the start of a round."""

    def phases(self) -> Sequence[Phase]:
        """What is trained."""

    def upload(self, working: Parts) -> Parts:
        """What leaves."""

    def keep(self, working: Parts) -> Parts:
        """What stays."""


def check_plan(name: str, method: Method, broadcast: Parts) -> None:
    """Refuse a method whose releases DP-SGD of its released phases would not cover.

    Args:
        name: the method's name, for the message.
        method: its client side.
        broadcast: parts as the server would send them, all finite.

    Raises:
        ConfigError: naming the phase, the part and the cure.
    """
    tainted: set[str] = set()
    while True:
        kept = method.keep(method.receive(broadcast, Parts()))
        working = method.receive(broadcast, _fill(kept, tainted))
        for phase in method.phases():
            raw = set(_tainted(working))
            trained = {phase.model[slot] for slot in phase.trains}
            if not phase.released:
                working = _fill(working, raw | trained)
                continue
            for part in _reads(phase):
                if part in raw:
                    raise _refusal(
                        name,
                        f"phase {phase.name!r} is released and reads {part!r}, which was trained "
                        "without privacy",
                        f"train {part!r} in a released phase, or keep the phase from reading it",
                    )
            if phase.batch_loss is not None:
                raise _refusal(
                    name,
                    f"phase {phase.name!r} is released and its loss looks across the batch",
                    "give it a loss per sample",
                )
        for part in _tainted(method.upload(working)):
            raise _refusal(
                name,
                f"the upload {part!r} is made of parts trained without privacy",
                "train them in a released phase, or leave them out",
            )
        found = set(_tainted(method.keep(working)))
        if found <= tainted:
            return
        tainted |= found


def _reads(phase: Phase) -> list[str]:
    reads = [*phase.model.values()]
    reads += phase.reference.values() if phase.reference else []
    reads += phase.prox.anchor.values() if phase.prox else []
    reads += phase.blend[0].values() if phase.blend else []
    return reads


def _fill(parts: Parts, names: Iterable[str]) -> Parts:
    chosen = set(names)
    return Parts({n: _nan(p) if n in chosen else p for n, p in parts.items()})


def _nan(part: Part) -> Part:
    return part.like(torch.full_like(part.vector, float("nan")))


def _tainted(parts: Parts) -> list[str]:
    return [name for name, part in parts.items() if bool(torch.isnan(part.vector).any())]


def _refusal(name: str, why: str, cure: str) -> ConfigError:
    return ConfigError("strategy.name", name, f"a method that is private as a whole: {why}", cure)
