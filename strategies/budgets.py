"""What is known of the clients' privacy budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedpers.channels.wire import Answers
from strategies.exchange import spending_of


class Budgets:
    """Whose budget is spent, and how much of each is, as the clients say.

    Attributes:
        spent: the clients that do not train any more.
        spending: by client, see ``strategies.exchange.spending_of``.
    """

    def __init__(self) -> None:
        self.spent: set[str] = set()
        self.spending: dict[str, Mapping[str, Any]] = {}

    def left(self, clients: Sequence[str]) -> list[str]:
        """The clients that may still train."""
        return [client for client in clients if client not in self.spent]

    def take(self, answers: Answers, asked: Mapping[str, Sequence[str]]) -> None:
        """Note who of those asked did not train, as nothing is left."""
        for group, body in answers.bodies.items():
            spent = body.get("spent")
            spent = spent if isinstance(spent, Mapping) else {}
            for client in set(asked[group]) & set(spent):
                self.spent.add(client)
                self.spending.update(spending_of(client, spent[client]))

    def note(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Note what those who trained have spent by now."""
        for client, report in reports.items():
            self.spending.update(spending_of(client, report))
