"""Whose updates are alike, when the server cannot read them: by inner products of ciphertexts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fedpers.channels.sealed.cipher import ServerCipher
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.channels.wire import Question, Wire


def compare(
    wire: Wire, cipher: ServerCipher, units: Mapping[str, SealedParts]
) -> dict[str, Tensor]:
    """For each client its weights [K] of all K clients in ``units``, which sum to 1.

    A client whose node does not answer has none.

    Args:
        units: of each client, its unit vector.
    """
    clients = list(units)
    products = cipher.inner_products([unit.sealed[0] for unit in units.values()])
    pairs = {p: k for k, p in enumerate(combinations(range(len(clients)), 2))}
    asked, questions = wire.by_node(clients), {}
    for node, hosted in asked.items():
        blobs, own = [], [clients.index(client) for client in hosted]
        for i in own:
            others = [(min(i, j), max(i, j)) for j in range(len(clients)) if j != i]
            blobs += [products[pairs[pair]].to_bytes() for pair in others]
        row = SealedParts({}, tuple(Group((), True) for _ in blobs), tuple(blobs))
        questions[node] = Question(hosted, [row], {"places": own, "of": len(clients)})
    found: dict[str, Tensor] = {}
    for node, body in wire.ask("similarity", questions).bodies.items():
        rows = body.get("rows")
        rows = rows if isinstance(rows, Mapping) else {}
        for client in asked[node]:
            given = rows.get(client)
            if weighs(given, len(clients)):
                weights = torch.tensor(given)
                found[client] = weights / weights.sum()
    return found


def weighs(row: Any, size: int) -> TypeGuard[list[float]]:
    """Whether a node's answer is a row of weights within 0..1, of which one or more count."""
    if not isinstance(row, list) or len(row) != size:
        return False
    return all(type(w) in (int, float) and 0 <= w <= 1 for w in row) and sum(row) > 0
