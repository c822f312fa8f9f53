"""What a client sends where privacy is that of the client as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedpers.parts import Parts


def unchanged(
    failed: Mapping[str, Exception],
    broadcasts: Mapping[str, Parts],
    sends: Iterable[str],
    note: Callable[[str, Exception], None],
) -> dict[str, tuple[Parts, dict[str, Any]]]:
    """In place of clients' failures what they received, a change of zero, and a report that says no
    more than others' do.

    A failure may come of a client's data, and so would tell of them; and under encryption the share
    of the noise would be missing that the client was to add.

    Args:
        failed: what the training of some clients raised.
        broadcasts: what each client received.
        sends: the parts that it is to send.
        note: writes down what failed and why, at home.
    """
    answers = {}
    for client, error in failed.items():
        note(f"train: client {client} sends what it received", error)
        answers[client] = (broadcasts[client].only(sends), {"examples": 1, "loss": None})
    return answers
