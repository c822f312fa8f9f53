"""One round: whom it asks, what came, what was mixed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Message

from fedpers.channels.base import Needs, Turn
from fedpers.channels.wire import Answers
from fedpers.errors import RunError
from fedpers.mixing import Mixing
from fedpers.privacy import BudgetSpent
from fedpers.records import Row, in_the_clear
from fedpers.streaming import StreamingMean
from strategies.base import PersonalizedStrategy
from strategies.budgets import Budgets
from strategies.exchange import (
    NOTHING,
    collect,
    group_of,
    read_each,
    reports_of,
    told_of,
    unusable,
)
from strategies.post import Post
from strategies.roster import Roster, natural_order
from strategies.signal import SignalToNoise

log = logging.getLogger("fedpers")


class Round:
    """The training of one round, from the selection to ``refine``.

    Attributes:
        asked: the clients that its messages are for, by message's group.
        sent: what each of them received.
        short: too few clients are there for anybody to be asked.
        reports: of those whose updates are mixed, in the roster's order.
        answers: what came, see ``fedpers.channels.wire.Answers``.
        unused: why nothing of it can be used, where updates came and were mixed in vain.
    """

    def __init__(
        self,
        number: int,
        method: PersonalizedStrategy,
        roster: Roster,
        post: Post,
        budgets: Budgets,
        signal: SignalToNoise,
    ) -> None:
        self.number, self.method, self.channel = number, method, method.channel
        self.roster, self.post, self.budgets, self.signal = roster, post, budgets, signal
        self.asked: dict[str, list[str]] = {}
        self.sent: dict[str, Row] = {}
        self.short = False
        self.answers = Answers()
        self.reports: dict[str, Mapping[str, Any]] = {}
        self.unused: str | None = None

    @property
    def cohort(self) -> list[str]:
        """The clients asked."""
        return [client for clients in self.asked.values() for client in clients]

    def ask(self, kind: str = "train", **body: Any) -> list[Message]:
        """A message or more for each node that hosts a selected client.

        None while fewer than ``strategy.min_clients`` are there: what they would release, and pay
        for, would not be used.
        """
        there = self.budgets.left(self.roster.clients)
        self.short = len(there) < self.method.config.strategy.min_clients
        if self.short:
            return []
        self._poll(there)
        cohort = self.channel.cohort(self.number, there)
        if cohort is None:
            cohort = self.method.select(self.number, there)
        try:
            self.channel.begin(self.number, cohort)
        except BudgetSpent as error:
            log.warning("round %d: %s", self.number, error)
            self.budgets.spent.update(self.roster.clients)  # one account, for all
            return []
        hosts = self.roster.by_node(cohort)
        in_order = [client for hosted in hosts.values() for client in hosted]
        self.sent = {c: self.method.broadcast(self.number, c) for c in in_order}
        messages, self.asked = self.post.messages(kind, self.number, self.sent, **body)
        return messages

    def _poll(self, there: Sequence[str]) -> None:
        """Ask whom the method wants to hear before it selects."""
        asked, told = self.method.poll(self.number, there), dict[str, Mapping[str, float]]()
        if asked:
            sent = {client: self.method.broadcast(self.number, client) for client in asked}
            messages, groups = self.post.messages("query.poll", self.number, sent)
            answers = collect(self.post.send(messages), groups, group_of)
            self.budgets.take(answers, groups)
            told = told_of(answers, groups, self.method.polls)
            silent = {client: NOTHING for client in asked if client not in told}
            for client, reason in (silent | answers.failures).items():
                log.warning("round %d: client %s not polled: %s", self.number, client, reason)
        self.method.polled = told

    def take(self, replies: Iterable[Message]) -> bool:
        """Mix the updates that came, leave out those that are broken, refine.

        Returns:
            Whether anything was mixed.

        Raises:
            RunError: the method's mixing is not what it declares.
        """
        stream = self.channel.stream(len(self.cohort)) if self.method.shares else None
        reports, answers = self._take_up(replies, stream), self.answers
        self.budgets.take(answers, self.asked)
        # In the roster's order, so that sums do not depend on who answered first.
        trained = set(reports) - set(answers.failures)
        self.reports = {c: reports[c] for c in self.roster.clients if c in trained}
        self.budgets.note(self.reports)
        if self.over:
            return False
        mixed = len(self.reports) >= self.least
        if mixed and self.method.shares:
            mixing = self._mixing()
            mixed = self._mix(mixing) if stream is None else self._end(stream, mixing)
        answers.failures |= dict.fromkeys(self.roster.absent, "its node is not there")
        for client, reason in answers.failures.items():
            log.warning("round %d: client %s left out: %s", self.number, client, reason)
        if not mixed or self.unused:
            return False
        self._refine()
        return True

    def _refine(self) -> None:
        """The method's step, with what it needs of the updates; after it they are gone."""
        method, rows = self.method, self.answers.rows
        method.reported = self.reports
        if method.needed != Needs():
            method.updates = {client: rows[client] for client in self.reports if client in rows}
        rows.clear()
        method.refine(self.number)
        method.updates = {}

    @property
    def over(self) -> bool:
        """Whether nobody trained as nobody has budget left: of all, or of those asked, and then
        others may go on."""
        if self.reports:
            return False
        asked, spent, there = set(self.cohort), self.budgets.spent, self.roster.clients
        nothing_left = bool(there) and not self.budgets.left(there)
        return nothing_left or (bool(asked) and asked <= spent)

    @property
    def least(self) -> int:
        """The fewest updates that are mixed."""
        fewest = self.method.config.strategy.min_clients
        return fewest if self.short else self.channel.least(fewest)

    def _take_up(
        self, replies: Iterable[Message], stream: StreamingMean | None
    ) -> dict[str, Mapping[str, Any]]:
        """Read each reply as it comes, leave out what cannot be used, add the rest to ``stream``.

        Returns:
            The reports that can be read.
        """
        reports = dict[str, Mapping[str, Any]]()
        judge = self.channel.accept if self.method.shares and not self.channel.later else None
        # In the roster's order, so that sums do not depend on who is where.
        place = {client: k for k, client in enumerate(sorted(self.cohort, key=natural_order))}
        stats = () if self.channel.hides_reports else self.method.reports
        for came in read_each(replies, self.asked, group_of):
            reports |= (told := reports_of(came, self.asked, stats))
            came.leave_out(unusable(came, self.asked, told, self.sent, judge))
            if stream is not None:
                for client in came.failures:
                    stream.leave_out(place[client])
                for client in list(came.rows):
                    weight = self.method.weight_of(told[client])
                    stream.add(place[client], weight, in_the_clear(came.rows.pop(client)))
            self.answers.merge(came)
        self.answers.complete = time.perf_counter()
        silent = set(place) - set(reports) - set(self.answers.failures)
        self.answers.leave_out(dict.fromkeys(sorted(silent, key=natural_order), NOTHING))
        return reports

    def _mixing(self) -> Mixing:
        """W. A mixing that a method has without a word would be taken for the one that it declares,
        where updates are added up as they come or cannot be read."""
        mixing, method = self.method.mixing(self.number, self.reports), self.method
        declared = method.weighed(self.reports)
        own = method.weights == "own" or method.needed.rows
        if not own and (list(mixing.recipients) != [None] or mixing.parts):
            cure = "declare it: Needs(rows=True)"
            raise RunError(f"mixing: got rows for {mixing.recipients[:3]}, takes one; {cure}")
        if not own and not torch.allclose(mixing.weights[0], declared):
            cure = f'set weights = "own" in {type(method).__name__}'
            raise RunError(
                f"mixing: got weights of its own, takes those by {method.weights}; {cure}"
            )
        return mixing

    def _end(self, stream: StreamingMean, mixing: Mixing) -> bool:
        before, self.method.parts = self.method.parts, stream.result()
        self._follow(before, mixing)
        return True

    def _mix(self, mixing: Mixing) -> bool:
        """Whether enough updates were left to be mixed."""
        method, answers = self.method, self.answers
        self.channel.gather(self.number, mixing, self.reports, answers)
        updates = {c: answers.rows[c] for c in self.reports if c in answers.rows}
        if len(updates) < self.least:
            return False
        before = method.parts
        mixed = self.channel.mix(Turn(self.number, self.cohort, before), mixing, updates)
        answers.leave_out(mixed.failures)
        self.reports = {c: r for c, r in self.reports.items() if c not in mixed.failures}
        self.unused = mixed.unused
        if self.unused:
            return True
        if (mean := mixed.report) is not None:  # of each, for whoever takes a mean of them
            self.reports = {client: {**own, **mean} for client, own in self.reports.items()}
        method.put(mixing, mixed.rows)
        if method.config.strategy.combine == "mean" and mixing.recipients[0] is None:
            self._follow(before, mixing)
        return True

    def _follow(self, sent: Row, mixing: Mixing) -> None:
        """Follow the mean, whose weights are the first row of ``mixing``, if all received the same
        and the noise in all updates is known."""
        if self.method.rows or not self.channel.in_the_clear:
            return
        noises = [n for r in self.reports.values() if isinstance(n := r.get("noise"), Mapping)]
        if len(noises) == len(self.reports):
            mean = in_the_clear(self.method.parts)
            self.signal.note(self.number, in_the_clear(sent), mean, mixing.weights[0], noises)
