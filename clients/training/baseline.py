"""The local-only baseline: as many epochs as the run, on each client's data alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clients.methods.local import Local
from clients.training.groups import train_group
from clients.training.layers import Fold
from clients.training.trainer import Trainer
from fedpers.context import Context
from fedpers.parts import Parts
from fedpers.progress import Progress


def train_baselines(
    local: Local,
    clients: Sequence[str],
    trainer_of: Callable[[str, int, Local], Trainer],
    keep: Callable[[str, Parts], None],
    fold: Fold | None,
    size: int,
) -> dict[str, Exception]:
    """Train local-only models, ``size`` at once; what those that failed raised.

    Args:
        clients: those with the most examples first.
        trainer_of: of a client, in a round.
        keep: takes the model of a client.
    """
    failures = {}
    for first in Progress("local baseline", len(clients)).steps(size):
        some = clients[first : first + size]
        workings = {c: local.receive(Parts(), Parts(), Context(c, 1)) for c in some}
        for server_round in range(1, local.config.rounds + 1):
            trainers = [trainer_of(client, server_round, local) for client in workings]
            trained = train_group(local, fold if size > 1 else None, trainers, [*workings.values()])
            for client, working in zip([*workings], trained, strict=True):
                if isinstance(working, Exception):
                    failures[client] = working
                    del workings[client]
                else:
                    workings[client] = working
        for client, working in workings.items():
            keep(client, local.keep(working))
    return failures
