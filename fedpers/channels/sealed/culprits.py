"""Whose update spoils a sum that nobody can read: found by sums of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Sets = Sequence[Sequence[str]]


def culprits(
    clients: Sequence[str], opens: Callable[[Sets], Sequence[bool] | None], least: int
) -> set[str] | None:
    """The clients whose updates keep a sum from opening.

    Halves a sum that does not open, all such at once, until halves would be too small; then each
    suspect is tried among clients of whom the sum is known to open. Of sums nothing is learned but
    whether they open, and none has fewer than ``least`` terms.

    Args:
        clients: whose sum does not open.
        opens: of each set of clients, whether its sum does; None if nobody tells.
        least: clients in a sum, at the least.

    Returns:
        None where too few clients are left to try the suspects with, or nobody tells.
    """
    small, good, large = list[list[str]](), list[str](), [list(clients)]
    if len(clients) < max(2, 2 * least):
        small, large = large, small
    while large:
        halves = [half for some in large for half in _halves(some)]
        told = opens(halves)
        if told is None:
            return None
        spoiled = [half for half, fine in zip(halves, told, strict=True) if not fine]
        good += [c for half, fine in zip(halves, told, strict=True) if fine for c in half]
        small += [some for some in spoiled if len(some) < max(2, 2 * least)]
        large = [some for some in spoiled if len(some) >= max(2, 2 * least)]
    found = set[str]()
    for some in small:
        named = _among(some, good, opens, least)
        if named is None:
            return None
        found |= named
    return found


def _halves(some: list[str]) -> list[list[str]]:
    middle = len(some) // 2
    return [some[:middle], some[middle:]]


def _among(
    some: Sequence[str],
    good: Sequence[str],
    opens: Callable[[Sets], Sequence[bool] | None],
    least: int,
) -> set[str] | None:
    """Of a set whose sum does not open, who is to blame."""
    if len(some) == 1:
        return set(some)
    if len(good) >= least - 1:
        told = opens([[client, *good[: least - 1]] for client in some])
        return None if told is None else {c for c, fine in zip(some, told, strict=True) if not fine}
    if len(some) - 1 < least:
        return None
    told = opens([[c for c in some if c != client] for client in some])
    if told is None or sum(told) != 1:  # without a single one it would open, so one alone is
        return None
    return {client for client, fine in zip(some, told, strict=True) if fine}
