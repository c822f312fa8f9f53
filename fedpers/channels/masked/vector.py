"""What one client's masked vector holds: its parts, and all that it reports.

Losses, counts and the method's own numbers are fields of it, so that the server has their means and
no client's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.masked.noise import NoisedField
from fedpers.channels.masked.quantise import WEIGHT, Field, Layout, Values
from fedpers.channels.settings import Encryption
from fedpers.errors import ClientError
from fedpers.parts import Layout as PartLayout
from fedpers.parts import Parts
from fedpers.privacy.shares import Shares
from fedpers.stats import Stat

LOSS = (-1e4, 1e4)  # beyond it a loss is clipped
NUMBER_BITS = 32
TOLD = "told"  # in the name of a field: of how many clients a number is

Sums = Mapping[str, npt.NDArray[np.float64]]


def noised_layout_of(parts: Mapping[str, PartLayout], shares: Shares, clients: int) -> Layout:
    """The fields of vectors in which clients are protected: noised changes, and nothing that no
    noise covers."""
    fields = [NoisedField.of(f"part {n}", x.size, shares) for n, x in parts.items()]
    return Layout(fields, clients)


def layout_of(
    parts: Mapping[str, PartLayout], stats: Sequence[Stat], settings: Encryption, clients: int
) -> Layout:
    """The fields of a cohort's vectors.

    Args:
        parts: that clients send, those derived of an update among them.
        stats: what the method's clients report.
        clients: of the cohort.
    """
    bound = (-settings.range, settings.range)
    fields = [Field(f"part {n}", x.size, bound, settings.masks.bits) for n, x in parts.items()]
    fields += _number("loss", LOSS)
    for stat in stats:
        fields += _number(f"stat {stat.name}", (stat.low, stat.high))
    return Layout(fields, clients)


def _number(name: str, bound: tuple[float, float]) -> list[Field]:
    """A number, which counts once a client, and whether it was told."""
    number = Field(name, 1, bound, NUMBER_BITS, weighted=False)
    return [number, Field(f"{TOLD} {name}", 1, (0.0, 1.0), 1, weighted=False)]


def values_of(layout: Layout, update: Parts, report: Mapping[str, Any]) -> dict[str, Values]:
    """One client's values, by field; a number that it does not tell is the lowest.

    Raises:
        ClientError: the layout has no room for a part of the update.
    """
    found: dict[str, Values] = {
        f"part {name}": part.vector.double().numpy() for name, part in update.items()
    }
    known = {field.name for field in layout.fields}
    if unknown := found.keys() - known:
        raise ClientError(f"upload: got {sorted(unknown)}, for which the server has no field")
    told = {"loss": report.get("loss")}
    told |= {f"stat {name}": value for name, value in report.get("method", {}).items()}
    for field in layout.fields:
        if f"{TOLD} {field.name}" in known:
            value = told.get(field.name)
            found[field.name] = np.array([field.bound[0] if value is None else value], float)
            found[f"{TOLD} {field.name}"] = np.array([0.0 if value is None else 1.0])
    return found


def weight_of(report: Mapping[str, Any], weights: str, most: int) -> float:
    """A client's weight, in 0..1: 1, or its number of examples of ``most``, which is the largest
    that counts."""
    return 1.0 if weights == "equal" else min(int(report["examples"]), most) / most


def mean_report(
    layout: Layout, sums: Sums, clients: int, weights: str, most: int
) -> dict[str, Any]:
    """The mean of the clients' reports; of a number among those that told it."""
    found: dict[str, Any] = {}
    for field in layout.fields:
        told = sums.get(f"{TOLD} {field.name}")
        if told is not None:
            count = round(float(told[0]))
            low = field.bound[0]
            total = float(sums[field.name][0]) - low * (clients - count)
            found[field.name] = min(max(total / count, low), field.bound[1]) if count else None
    report: dict[str, Any] = {"examples": 1, "loss": found.pop("loss", None)}
    if weights == "examples":
        report["examples"] = round(float(sums[WEIGHT][0]) * most / clients)
    method = {n.removeprefix("stat "): value for n, value in found.items() if value is not None}
    return report | ({"method": method} if method else {})


def to_json(layout: Layout) -> list[Any]:
    """How many clients a sum has room for, and the fields; ``from_json`` reads it back."""
    return [layout.clients, [_row(f) for f in layout.fields if f.name != WEIGHT]]


def _row(field: Field) -> list[Any]:
    row = [field.name, field.length, *field.bound, field.bits, field.weighted]
    if isinstance(field, NoisedField):
        row += [field.shares.size, field.shares.sigma, field.shares.honest]
    return row


def from_json(found: Any) -> Layout:
    """The layout that ``to_json`` wrote.

    Raises:
        Refused: it is none.
    """
    try:
        clients, rows = found
        return Layout([_field(*row) for row in rows], int(clients))
    except (TypeError, ValueError):
        raise Refused("layout: cannot be read, takes clients and fields") from None


def _field(
    name: Any, length: Any, low: Any, high: Any, bits: Any, weighted: Any, *noise: Any
) -> Field:
    if noise:
        size, sigma, honest = noise
        shares = Shares(int(size), float(high), int(bits), float(sigma), int(honest))
        return NoisedField.of(str(name), int(length), shares)
    return Field(str(name), int(length), (float(low), float(high)), int(bits), bool(weighted))
