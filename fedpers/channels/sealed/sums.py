"""Sums and mixtures of updates that nobody here can read, with the clients' words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedpers.channels.sealed.cipher import ServerCipher
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.channels.sealed.server import whole
from fedpers.channels.sealed.statement import Term
from fedpers.errors import ClientError, RunError
from fedpers.records import Row


def total(
    cipher: ServerCipher, updates: Mapping[str, SealedParts], weights: Mapping[str, float]
) -> SealedParts:
    """The sum of all groups but the unit vectors, to be divided by the sum of the weights.

    Args:
        weights: by which clients multiplied their updates.

    Raises:
        ClientError: an update is malformed.
    """
    first = next(iter(updates.values()))
    kept = [index for index, group in enumerate(first.groups) if not group.unit]
    sums = [cipher.add(update.sealed[k] for update in updates.values()) for k in kept]
    divisor = sum(weights[client] for client in updates)
    groups = tuple(first.groups[k] for k in kept)
    layouts = {name: first.layouts[name] for group in groups for name in group.names}
    terms = tuple(tuple(one.terms[k][0] for one in updates.values()) for k in kept)
    return SealedParts(layouts, groups, tuple(one.to_bytes() for one in sums), divisor, terms)


def per_parameter(update: SealedParts) -> float:
    """Bytes that a client sends for each value."""
    return update.nbytes / sum(one.size for one in update.sealed)


def malformed(cipher: ServerCipher, updates: Mapping[str, SealedParts]) -> dict[str, str]:
    """By client, why its update cannot be added to others."""
    wrong = {}
    for client, update in updates.items():
        try:
            for group, one in zip(update.groups, update.sealed, strict=True):
                if not group.unit:
                    cipher.add([one])
        except ClientError as error:
            wrong[client] = f"update: {error}"
    return wrong


def mixtures(
    cipher: ServerCipher, weights: Tensor, updates: Sequence[SealedParts], names: Sequence[str]
) -> list[Row]:
    """Mixtures [R] of some parts of single updates, with weights [R, K].

    Raises:
        RunError: a weight is below 0, which no client opens.
    """
    if bool((weights < 0).any()):
        raise RunError("mixing: got weights below 0, takes 0 or more under encryption")
    kept = [update.of(names) for update in updates]
    mixed: list[list[bytes]] = [[] for _ in weights]
    for index in range(len(kept[0].groups)):
        found = cipher.mix(weights, [update.sealed[index] for update in kept])
        for row, one in zip(mixed, found, strict=True):
            row.append(one.to_bytes())
    rows: list[Row] = []
    for blobs, times in zip(mixed, whole(weights).int().tolist(), strict=True):
        there = [(update, count) for update, count in zip(kept, times, strict=True) if count]
        terms = tuple(
            tuple(Term(update.terms[k][0].statement, count) for update, count in there)
            for k in range(len(blobs))
        )
        rows.append(SealedParts(kept[0].layouts, kept[0].groups, tuple(blobs), terms=terms))
    return rows
