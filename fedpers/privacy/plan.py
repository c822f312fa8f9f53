"""The privacy plan: is everything that leaves a client covered by its DP training?

Sample-level DP-SGD covers a release only if whatever influenced it was trained under DP itself, or
does not depend on the client's data. A head trained without noise, through which the gradients of
a released body flow, breaks the guarantee in silence. So before a run the plan follows the parts
through its rounds: a part trained without DP is tainted, and a released phase that reads a tainted
part, or an upload that is made of one, is refused.

To see what is made of a tainted part while a method receives, keeps or uploads, the rounds are
followed with several fillings of the tainted parts: NaN, which arithmetic keeps, and numbers of
either sign from 1e-8 to 1e8, so that thresholds, signs and orders show. A part is tainted if it
holds NaN or is not the same with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor

from fedpers.context import Context
from fedpers.errors import ConfigError
from fedpers.outputs import Outputs
from fedpers.parts import Part, Parts
from fedpers.phases import Phase
from fedpers.tasks.base import Task

PROBE = 4  # examples of the batch that a loss is tried on

Worlds = list[Parts]  # the same parts under each filling


class Method(Protocol):
    """What the plan needs to know of a client's algorithm."""

    task: Task

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """The working parts at the start of a round."""

    def phases(self) -> Sequence[Phase]:
        """What is trained."""

    def upload(self, working: Parts) -> Parts:
        """What leaves."""

    def keep(self, working: Parts) -> Parts:
        """What stays."""


def check_plan(name: str, method: Method, broadcast: Parts, rounds: int) -> None:
    """Refuse a method whose releases DP-SGD of its released phases would not cover.

    Args:
        name: the method's name, for the message.
        method: its client side.
        broadcast: parts as the server would send them. Their values are replaced: from zeros, which
            a model may start at, a method could make nothing visible.
        rounds: of the run; all are followed, unless one begins as an earlier one did and the method
            never looks at their numbers.

    Raises:
        ConfigError: naming the phase, the part and the cure.
    """
    broadcast = Parts({n: p.like(1 + _spread(p.vector, 0)) for n, p in broadcast.items()})
    tainted: set[str] = set()
    kept: Worlds = [Parts() for _ in FILLINGS]
    seen: set[tuple[str, ...]] = set()
    looked = False
    for server_round in range(1, rounds + 1):
        state = (*(world.digest() for world in kept), *sorted(tainted))
        if state in seen and not looked:
            return
        seen.add(state)
        context = _Watched("", server_round)
        working = [method.receive(broadcast, personal, context) for personal in kept]
        looked = looked or context.looked
        for phase in method.phases():
            raw, trained = _tainted(working), {phase.model[slot] for slot in phase.trains}
            if phase.released:
                _check_released(name, phase, raw, working[1], method.task)
                working = [_retrained(world, trained) for world in working]
            else:
                working = _fill(working, raw | trained)
        for part in sorted(_tainted([_sent(name, method, world) for world in working])):
            raise _refusal(
                name,
                f"the upload {part!r} is made of parts trained without privacy",
                "train them in a released phase, or leave them out",
            )
        kept = [method.keep(world) for world in working]
        tainted |= _tainted(kept)
        kept = _fill(kept, tainted)


def _sent(name: str, method: Method, world: Parts) -> Parts:
    try:
        return method.upload(world)
    except KeyError as error:  # of ``prepare`` or ``conclude``, which see the data
        raise _refusal(
            name,
            f"the upload looks for {error}, which was neither received nor trained in a phase",
            "make the upload of parts that were",
        ) from None


class _Watched(Context):
    """A context that notes whether its round is looked at."""

    looked = False

    def __getattribute__(self, name: str) -> Any:
        if name == "server_round":
            object.__setattr__(self, "looked", True)
        return super().__getattribute__(name)


def _check_released(name: str, phase: Phase, raw: set[str], working: Parts, task: Task) -> None:
    for part in _reads(phase):
        if part in raw:
            raise _refusal(
                name,
                f"phase {phase.name!r} is released and reads {part!r}, which was trained "
                "without privacy",
                f"train {part!r} in a released phase, or keep the phase from reading it",
            )
    if phase.batch_loss is not None or not _per_sample(phase, working, task):
        raise _refusal(
            name,
            f"phase {phase.name!r} is released and its loss looks across the batch",
            "give it a loss per sample",
        )


def _per_sample(phase: Phase, working: Parts, task: Task) -> bool:
    """Whether a phase's loss gives each example of a made-up batch what it gives it alone."""
    weights = [part["head.weight"] for part in working.values() if "head.weight" in part]
    if not weights:
        return True  # no head, so its outputs cannot be made up
    further: list[str] = []  # outputs of the method's own that its loss reads, as it asks for them
    while True:
        try:
            return _each_alone(phase, weights[0].shape[1], task, further)
        except KeyError as error:
            name = error.args[0]
            if not isinstance(name, str) or name in further:
                raise
            further.append(name)


def _each_alone(phase: Phase, width: int, task: Task, further: Sequence[str]) -> bool:
    loss = phase.objective(task)
    generator = torch.Generator().manual_seed(0)

    def made_up() -> Outputs:
        features = torch.randn(PROBE, width, generator=generator)
        extra = {name: task.made_up_scores(PROBE, generator) for name in further}
        return Outputs(features, task.made_up_scores(PROBE, generator), extra)

    targets = task.made_up(PROBE, generator)
    outputs, seen = made_up(), made_up() if phase.reference is not None else None

    def of(rows: slice) -> Tensor:
        return loss(outputs.take(rows), targets[rows], None if seen is None else seen.take(rows))

    together = of(slice(None))
    alone = [of(slice(k, k + 1)) for k in range(PROBE)]
    if together.shape != (PROBE,) or any(one.shape != (1,) for one in alone):
        return False
    return torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def _reads(phase: Phase) -> list[str]:
    reads = [*phase.model.values()]
    reads += phase.reference.values() if phase.reference else []
    reads += phase.prox.anchor.values() if phase.prox else []
    reads += phase.blend[0].values() if phase.blend else []
    return reads


def _spread(vector: Tensor, seed: int) -> Tensor:
    """Numbers in 0..1 of a vector's shape, known ones."""
    generator = torch.Generator().manual_seed(1000 * vector.numel() + seed)
    return torch.rand(vector.shape, generator=generator)


def _retrained(world: Parts, names: Iterable[str]) -> Parts:
    """With parts as DP training may leave them, the same in every world."""
    return world | {n: world[n].like(0.5 + _spread(world[n].vector, 1)) for n in names}


def _filling(magnitude: float, signs: str, seed: int) -> Callable[[Tensor], Tensor]:
    def filling(vector: Tensor) -> Tensor:
        drawn = magnitude * (1 + _spread(vector, seed))
        if signs == "mixed":
            return drawn * (2 * (_spread(vector, seed + 1) < 0.5) - 1)
        return drawn if signs == "plus" else -drawn

    return filling


FILLINGS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda vector: torch.full_like(vector, float("nan")),
    # Each in an order of its own, lest an order or the largest values be the same in all.
    *(
        _filling(magnitude, signs, 10 * k)
        for k, (magnitude, signs) in enumerate(
            product((1.0, 1e-8, 1e-3, 1e3, 1e8), ("plus", "minus", "mixed")), start=1
        )
    ),
)


def _fill(worlds: Worlds, names: Iterable[str]) -> Worlds:
    chosen = set(names)
    return [
        Parts({n: p.like(filling(p.vector)) if n in chosen else p for n, p in world.items()})
        for world, filling in zip(worlds, FILLINGS, strict=True)
    ]


def _tainted(worlds: Worlds) -> set[str]:
    nan, first, *others = worlds
    names = {name for world in worlds for name in world}
    return {
        name
        for name in names
        if any(name not in world for world in worlds)
        or bool(torch.isnan(nan[name].vector).any())
        or any(not _same(first[name], world[name]) for world in others)
    }


def _same(one: Part, other: Part) -> bool:
    return one.layout == other.layout and torch.equal(one.vector, other.vector)


def _refusal(name: str, why: str, cure: str) -> ConfigError:
    return ConfigError("strategy.name", name, f"a method that is private as a whole: {why}", cure)
