"""Rounds that several methods have: a branch of the client's own beside the one that is sent."""

from __future__ import annotations

from collections.abc import Iterable

from clients.base import LocalAlgorithm
from fedpers.parts import Parts
from fedpers.phases import Phase, Prox


def two_branches(
    algorithm: LocalAlgorithm, mu: float, *, epochs: int | None = None, lr: float | None = None
) -> list[Phase]:
    """Ditto's and PerAda's round: a personal branch held near what was received, then the
    branch that is sent, trained from what was received alone.

    The anchor is what the server sent, never the locally trained copy.
    """
    slots = algorithm.slots
    anchor = {slot: f"received.{slot}" for slot in slots}
    return [
        Phase(
            name="personal branch",
            model=algorithm.branch(slots),
            trains=slots,
            released=False,
            prox=Prox(mu, anchor),
            epochs=epochs,
            lr=lr,
        ),
        algorithm.shared_phase("shared branch"),
    ]


def blended_branches(
    algorithm: LocalAlgorithm, share: float, *, local: str, shared: str
) -> list[Phase]:
    """APFL's and FedDPA's round: an own model, trained within share * own + (1 - share) * received,
    then the branch that is sent, which reads nothing of it.

    Args:
        local, shared: the phases' names.
    """
    slots = algorithm.slots
    own = Phase(
        name=local,
        model=algorithm.branch(slots),
        trains=slots,
        released=False,
        blend=({slot: f"received.{slot}" for slot in slots}, share),
    )
    return [own, algorithm.shared_phase(shared)]


def mixture(working: Parts, slots: Iterable[str], share: float) -> Parts:
    """The parts ``mixed.*``: share * personal + (1 - share) * received, for each slot."""
    mixed = {}
    for slot in slots:
        own, received = working[f"personal.{slot}"], working[f"received.{slot}"]
        mixed[f"mixed.{slot}"] = own.like(share * own.vector + (1 - share) * received.vector)
    return Parts(mixed)
