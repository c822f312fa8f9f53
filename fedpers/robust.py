"""Against clients that lie: how long an update may be, and combinations that a few cannot move.

All of this needs plain updates. The rules give every client the same weight: whoever lies would lie
about its number of examples too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

import torch
from torch import Tensor

from fedpers.errors import RunError
from fedpers.parts import Part, Parts, combine, stack

SLACK = 1 + 1e-3  # of a norm that has been through float32


def change(sent: Parts, update: Parts) -> float:
    """The Euclidean length of an update's change from what was sent, over all parts together."""
    squares = (
        float((part.vector.double() - sent[name].vector.double()).square().sum())
        for name, part in update.items()
    )
    return float(sum(squares) ** 0.5)


def too_long(sent: Parts, update: Parts, most: float) -> str | None:
    """Why an update may not be used, if its change is longer than ``most``; None if it may."""
    length = change(sent, update)
    return None if length <= SLACK * most else f"update: norm {length:.4g}, takes <= {most:g}"


def clipped(upload: Parts, broadcast: Parts, norm: float) -> Parts:
    """What was received plus the change, scaled so that its norm over all parts is at most ``norm``
    (McMahan et al. 2018, arXiv 1710.06963, flat clipping).

    Args:
        upload: parts that were received, as they are to be sent.
        broadcast: the same parts as they came.
        norm: > 0.
    """
    changes = {n: p.vector.float() - broadcast[n].vector.float() for n, p in upload.items()}
    length = sum(float(change.double().square().sum()) for change in changes.values()) ** 0.5
    if length <= norm:
        return upload
    scale = norm / length
    return Parts(
        {n: p.like(broadcast[n].vector.float() + scale * changes[n]) for n, p in upload.items()}
    )


def median(x: Tensor) -> Tensor:
    """The coordinate-wise median [size] of updates X [K, size]; of an even number the mean of the
    two in the middle (Yin et al. 2018, arXiv 1803.01498, Definition 1)."""
    ordered = x.sort(dim=0).values
    return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2


def trimmed_mean(x: Tensor, trimmed: int) -> Tensor:
    """The coordinate-wise mean [size] of updates X [K, size] without the largest and the smallest
    values of each coordinate (Yin et al. 2018, Definition 2).

    Args:
        trimmed: how many values on each side, 0 <= trimmed < K / 2.
    """
    return x.sort(dim=0).values[trimmed : len(x) - trimmed].mean(dim=0)


def krum(x: Tensor, liars: int) -> Tensor:
    """Which K - f of the updates X [K, size] lie closest together: their row numbers [K - f].

    Multi-Krum (Blanchard et al. 2017, Section 4): an update's score is the sum of its squared
    distances to the K - f - 2 nearest others; the K - f best scores are taken. (Krum alone takes
    one, which under different data at each client drops most of what they know.)

    Args:
        liars: f, how many updates may be arbitrary.

    Raises:
        RunError: fewer than 2f + 3 updates, for which the rule says nothing.
    """
    if len(x) < 2 * liars + 3:
        takes = f"{2 * liars + 3} updates or more a round against {liars} liars, got {len(x)}"
        raise RunError(f"strategy.combine: krum takes {takes}; lower strategy.trim")
    # Not by inner products, in whose rounding the distance of near updates is lost.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = distances.sort(dim=1).values[:, 1 : len(x) - liars - 1]  # after the 0 to itself
    best = nearest.sum(dim=1).argsort(stable=True)[: len(x) - liars]
    return best.sort().values


def left_out(trim: float, clients: int) -> int:
    """floor(trim K), how many of K updates may lie: on each side, for ``trimmed``."""
    return floor(trim * clients + 1e-9)  # 0.29 * 100 is 28.99...96


def combine_robustly(rule: str, updates: Sequence[Parts], trim: float) -> Parts:
    """One combination of K updates that floor(trim K) of them can move little, without weights.

    The median and the trimmed mean of each coordinate lie between honest clients' values while
    fewer than half, or at most floor(trim K), lie. Krum chooses clients once, by their whole
    updates.

    Args:
        rule: ``median``, ``trimmed`` or ``krum``.
        updates: of the same layouts, at least one.
        trim: the share left out (on each side, for ``trimmed``), 0 <= trim < 0.5.

    Raises:
        RunError: too few updates for ``krum``.
    """
    count = left_out(trim, len(updates))
    if rule == "krum":
        whole = torch.cat([stack(updates, name) for name in updates[0]], dim=1)
        chosen = krum(whole, count)
        weights = torch.zeros(1, len(updates))
        weights[0, chosen] = 1 / len(chosen)
        return combine(weights, updates)[0]
    combined: Mapping[str, Part] = {
        name: part.like(
            median(stack(updates, name))
            if rule == "median"
            else trimmed_mean(stack(updates, name), count)
        )
        for name, part in updates[0].items()
    }
    return Parts(combined)
