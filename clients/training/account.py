"""One client's account with a run: how much noise it adds, and what is left of its budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor

from clients.node.store import ClientStore
from fedpers.config import Config
from fedpers.data import ClientData
from fedpers.errors import ClientError, ConfigError
from fedpers.privacy import (
    Budget,
    BudgetSpent,
    Ledger,
    Mechanism,
    Release,
    calibrated,
    data_digest,
    epsilon_of,
    mechanism_named,
)
from fedpers.privacy.accounting import LARGEST_NOISE, default_delta
from fedpers.privacy.noise import Source, Sources

# What is released once, beside the phases, and its share of the 1 / sigma of a release that
# would take the whole budget. mu^2 adds up: phases on whole batches are left sqrt(1 - share^2) of
# it, so that an eighth costs them 0.8 % more noise, and three tenths 4.8 %.
LABELS, EXAMPLES = "labels", "examples"
ONCE = {LABELS: 0.3, EXAMPLES: 0.125}
# Likewise for what is released in every round, of all rounds together.
SUMS, REPORT, POLL = "sums", "report", "poll"
EACH = {SUMS: 0.3, REPORT: 0.125, POLL: 0.125}
POOLS = 0.3  # of all vectors together that are asked for beside the rounds
ACCOUNT, RELEASED = "account", "released"


class Releases(NamedTuple):
    """What a method releases.

    Attributes:
        phases: how many of its phases, each round.
        labels: counts of the client's labels, once.
        gradients: how many single gradients, each round.
        sums: how many sums, each round.
        report: numbers of its own, each round.
        poll: numbers that clients are asked for before a round.
        pools: vectors that they are asked for once, by name.
    """

    phases: int
    labels: bool = False
    gradients: int = 0
    sums: int = 0
    report: bool = False
    poll: bool = False
    pools: tuple[str, ...] = ()


class Account:
    """What one client may release in a round of this run, and its ledger.

    The noise is calibrated for the rounds that the client is expected to take part in, and for what
    is left where the ledger holds releases of earlier runs; no amplification by the choice of
    clients is claimed. A client that is chosen more often reaches its budget and is left out from
    then on.

    Args:
        config: the run's settings.
        releases: what the method releases.
        client: its id, for messages.
        data: all its examples; the ledger is kept under their digest, whatever their order or
            split, so that another run on the same data continues the account.
        ledgers: the folder of the ledgers.
        store: where the noise of this run is kept, should the process be started anew.
        run: the run's name.
        sources: of all that is random in what it releases.
        owner: on a device, whose ledger it is, whatever the data are: they grow from run to run,
            and what was released of the old ones stays released.
    """

    def __init__(
        self,
        config: Config,
        releases: Releases,
        client: str,
        data: ClientData,
        ledgers: Path,
        store: ClientStore,
        sources: Sources,
        run: str = "",
        owner: str | None = None,
    ) -> None:
        """Open the account.

        Raises:
            ConfigError: as in ``check_client``.
            ClientError: the ledger cannot be read.
        """
        privacy = config.privacy
        self.client, self.sources = client, sources
        n = None if privacy.protects_counts else len(data.train)
        check_client(config, client, n)
        self.delta = privacy.delta or default_delta(n or 0)
        everything = [(part.x, part.y) for part in (data.train, data.val, data.test)]
        name = data_digest(everything) if owner is None else quote(owner, safe="")
        if owner is None and not any(len(y) for _, y in everything):
            name = f"{name}-{quote(client, safe='')}"  # clients without data are not one client
        lasts = owner is not None or config.state is not None
        ledger = Ledger.named(ledgers, name, lasts=lasts)
        self.budget = Budget(ledger, privacy.epsilon, self.delta)
        self.kind = mechanism_named(privacy.mechanism)
        self.phases, self.gradients = releases.phases, releases.gradients
        names = [LABELS] if releases.labels else []
        names += [EXAMPLES] if privacy.protects_counts else []
        self.once = {name: self._at_a_share(privacy.epsilon, ONCE[name]) for name in names}
        each_pool = POOLS / len(releases.pools) ** 0.5 if releases.pools else 0.0
        self.once |= {name: self._at_a_share(privacy.epsilon, each_pool) for name in releases.pools}
        self.rounds = ceil(config.strategy.fraction * config.rounds)  # that it is expected in
        counts = {SUMS: releases.sums, REPORT: int(releases.report), POLL: int(releases.poll)}
        asked = {SUMS: self.rounds, REPORT: self.rounds, POLL: config.rounds}
        self.each = {
            name: self._at_a_share(privacy.epsilon, EACH[name] / (count * asked[name]) ** 0.5)
            for name, count in counts.items()
            if count
        }
        self._counts, self._asked = counts, asked
        self.phase = Release(self._calibrated(config, store, run), privacy.steps)
        self.round = self.phase._replace(steps=privacy.steps * self.phases + self.gradients)
        self._store = store
        self._count: int | None = None  # of its examples, where that was released
        self._phases_paid = self._gradients_paid = 0
        self._paid = Counter[str]()  # sums, by what they are of

    def _at_a_share(self, epsilon: float, share: float) -> Release:
        whole = calibrated(self.kind, epsilon, self.delta, 1.0, 1)
        return Release(replace(whole, sigma=whole.sigma / share), 1)

    def _calibrated(self, config: Config, store: ClientStore, run: str) -> Mechanism:
        """The mechanism of this run's phases; the same one whenever it is asked for."""
        known = store.load_json(ACCOUNT)
        if known.get("run") == run:
            return self.kind(float(known["sigma"]), config.privacy.sampling_rate)
        privacy, rate = config.privacy, config.privacy.sampling_rate
        steps = max(1, self.rounds * (self.phases * privacy.steps + self.gradients))
        beside = list(self.once.values())
        beside += [r._replace(steps=self._counts[n] * self._asked[n]) for n, r in self.each.items()]
        try:
            found = self.budget.calibrated(self.kind, rate, steps, tuple(beside))
        except BudgetSpent:  # the first charge will say so again
            found = calibrated(self.kind, privacy.epsilon, self.delta, rate, steps, tuple(beside))
        store.save_json(ACCOUNT, {"run": run, "sigma": found.sigma})
        return found

    def charge(self, *once: str) -> None:
        """Charge one round, before anything of it is released.

        Args:
            once: what else the round releases, ``LABELS`` or ``EXAMPLES``.

        Raises:
            BudgetSpent: the round would exceed the budget.
        """
        each = {name: self._counts[name] for name in self.each if name != POLL}
        self._pay([self.round], each | dict.fromkeys(once, 1))
        self._phases_paid, self._gradients_paid = self.phases, self.gradients

    def charge_poll(self) -> None:
        """Charge what the client is asked for before a round, and its number of examples where that
        is protected and was not released.

        Raises:
            BudgetSpent: it would exceed the budget.
        """
        self._pay([], {POLL: 1} | dict.fromkeys(self.due(first=False), 1))

    def charge_pool(self, what: str) -> None:
        """Charge a vector that the client is asked for beside the rounds, and its number of
        examples as in ``charge_poll``.

        Raises:
            BudgetSpent: it would exceed the budget.
        """
        self._pay([], {what: 1} | dict.fromkeys(self.due(first=False), 1))

    def _pay(self, steps: list[Release], sums: Mapping[str, int]) -> None:
        self._phases_paid = self._gradients_paid = 0
        self._paid = Counter()
        known = self.once | self.each
        steps = steps + [known[name]._replace(steps=count) for name, count in sums.items()]
        # That of which there will be more in later rounds is the first.
        self.budget.charge([r for r in steps if r.steps] or steps, one_kind=not self.each)
        self._paid = Counter(sums)

    def take_phase(self) -> Release:
        """The release of one phase, out of those charged for this round.

        Raises:
            ClientError: the method trains more released phases than it declares.
        """
        if self._phases_paid < 1:
            raise ClientError(
                f"privacy: this round was charged for {self.phases} released phases, and the "
                "method trains one more; declare it in phases()"
            )
        self._phases_paid -= 1
        return self.phase

    def take_gradient(self) -> Release:
        """The release of one gradient, out of those charged for this round.

        Raises:
            ClientError: the method takes more of them than its phases declare.
        """
        if self._gradients_paid < 1:
            raise ClientError(
                f"privacy: this round was charged for {self.gradients} gradients, and the method "
                "takes one more; declare it in Phase.gradients"
            )
        self._gradients_paid -= 1
        return self.phase._replace(steps=1)

    def noised(self, what: str, total: Tensor, source: Source) -> Tensor:
        """A sum [k] with noise for one example more or less, which adds at most 1 to its norm.

        Args:
            what: as which it was charged.

        Raises:
            ClientError: it was not charged for this round, or was released already.
        """
        if not self._paid[what]:
            if what in ONCE:
                what, cure = f"counts of {what}", "set releases_counts and keep the noised counts"
            else:
                cure = "set releases_sums, reports or polls to all that is released"
            raise ClientError(f"privacy: this round was not charged for {what}; {cure}")
        self._paid[what] -= 1
        return (self.once | self.each)[what].mechanism.noised(total, 1.0, source)

    def due(self, *, first: bool) -> list[str]:
        """What is released once and was not yet: counts of labels in the client's first round, and
        in the run's its number of examples, where that is protected."""
        self._count = self._store.load_json(RELEASED).get(EXAMPLES)
        fresh = {LABELS: first, EXAMPLES: self._count is None}
        return [what for what in self.once if fresh.get(what)]

    def count_examples(self, examples: int, release: Callable[[Tensor, str], Tensor]) -> None:
        """Release the number of examples, if this round was charged for it: before the training,
        whose sums are divided by it.

        It is at least its noise's deviation, below which it says nothing, and would make of sums
        that are divided by it huge steps.

        Args:
            release: ``Trainer.release_counts`` of the client.

        Raises:
            ConfigError: delta protects nobody among so many.
        """
        if self._paid[EXAMPLES]:
            noised = float(release(torch.ones(examples, 1), EXAMPLES))
            self._count = max(1, round(max(noised, self.once[EXAMPLES].mechanism.sigma)))
            self._store.save_json(RELEASED, {EXAMPLES: self._count})
        if self._count is not None and self.delta * self._count >= 1:
            takes = f"a number < {1 / self._count:.2g}: {self.client} has about {self._count}"
            raise ConfigError("privacy.delta", self.delta, takes)

    @property
    def weight(self) -> int:
        """What the client weighs: its released number of examples, or 1 as all others."""
        return 1 if self._count is None else self._count

    def expected(self, examples: int) -> float:
        """The expected size of a phase's sample of so many examples, by which its noised sum is
        divided: nobody's secret.

        Raises:
            ClientError: the number of examples is protected, and was not released.
        """
        expected = self.phase.mechanism.rate * self.examples(examples)
        return expected if EXAMPLES not in self.once else max(1.0, expected)

    def examples(self, examples: int) -> int:
        """How many examples there are, as far as may be told.

        Raises:
            ClientError: their number is protected, and was not released.
        """
        if EXAMPLES not in self.once:
            return examples
        if self._count is None:
            raise ClientError("privacy: the number of examples is used before it was released")
        return self._count

    def spending(self) -> dict[str, float]:
        """What was spent so far, over all runs that the ledger knows of: epsilon at its delta, mu
        of Gaussian DP, and the noise multiplier of this run's phases."""
        spent = {"epsilon": self.budget.spent, "delta": self.delta, "mu": self.budget.mu}
        return {**spent, "sigma": self.phase.mechanism.sigma}


def check_client(config: Config, client: str, examples: int | None) -> None:
    """Refuse settings that protect nothing at a client of so many training examples.

    Args:
        examples: None where their number is protected, and a refusal would tell of it.

    Raises:
        ConfigError: delta is no less than 1/n, the sampling rate is below 1/n, there is no such
            mechanism, or epsilon is so small that no noise is shown to be enough; naming the
            client, the setting and the cure.
    """
    privacy = config.privacy
    if examples == 0:
        return  # it has nothing to release, and sends what it received
    if examples is not None and privacy.delta is not None and privacy.delta * examples >= 1:
        takes = f"a number < {1 / examples:.2g}, for client {client} has {examples} examples"
        raise ConfigError("privacy.delta", privacy.delta, takes, "leave it out for a safe default")
    if examples is not None and privacy.sampling_rate * examples < 1:
        takes = f"a number >= {1 / examples:.2g}, for client {client} has {examples} examples"
        raise ConfigError("privacy.sampling_rate", privacy.sampling_rate, takes)
    delta = privacy.delta or default_delta(examples or 0)
    most = mechanism_named(privacy.mechanism)(LARGEST_NOISE, 1.0)
    least = epsilon_of([Release(most, config.rounds * privacy.steps)], delta)
    if privacy.epsilon <= least:
        takes = f"a number > {least:.2g}, the least that is kept to at delta {delta:.1g}"
        raise ConfigError("privacy.epsilon", privacy.epsilon, takes)
