"""Which of a simulation's clients each node hosts."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def deal(sizes: Mapping[str, int], nodes: int) -> list[list[str]]:
    """Deal clients to nodes, the largest first to the least loaded node, ties to the first.

    Every node computes the same answer, so nobody has to send it.
    """
    hands: list[list[str]] = [[] for _ in range(nodes)]
    heap = [(0, 0, node) for node in range(nodes)]  # its load, how many it has
    for client in sorted(sizes, key=lambda c: -sizes[c]):
        load, count, node = heap[0]
        hands[node].append(client)
        # A client costs a little even without examples.
        heapq.heapreplace(heap, (load + sizes[client] + 1, count + 1, node))
    return hands
