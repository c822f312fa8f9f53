"""One client's account with a run: how much noise it adds, and what is left of its budget."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from clients.base import LocalAlgorithm
from fedpers.config import Config
from fedpers.data import ClientData
from fedpers.errors import ClientError, ConfigError
from fedpers.privacy import Budget, Ledger, Release, data_digest, noise_multiplier
from fedpers.privacy.accounting import default_delta, tight_epsilon_of

COUNTS_SHARE = 0.25  # of epsilon, for a method that also releases counts


class Account:
    """What one client may release in a round of this run, and its ledger.

    The noise is calibrated for the rounds that the client is expected to take part in; no
    amplification by the choice of clients is claimed. A client that is chosen more often reaches
    its budget and is left out from then on.

    Args:
        config: the run's settings.
        algorithm: the method.
        client: its id, for messages.
        data: all its examples; the ledger is kept under their digest, whatever their order or
            split, so that another run on the same data continues the account.
        ledgers: the folder of the ledgers.
    """

    def __init__(
        self,
        config: Config,
        algorithm: LocalAlgorithm,
        client: str,
        data: ClientData,
        ledgers: Path,
    ) -> None:
        """Open the account.

        Raises:
            ConfigError: delta is no less than 1/n, or the sampling rate is below 1/n.
            ClientError: the ledger cannot be read.
        """
        privacy, n = config.privacy, len(data.train)
        check_client(config, client, n)
        self.delta = privacy.delta or default_delta(n)
        rounds = ceil(config.strategy.fraction * config.rounds)
        self.phases = sum(phase.released for phase in algorithm.phases())
        steps = max(1, rounds * self.phases * privacy.steps)
        beside: tuple[Release, ...] = ()
        if algorithm.releases_counts:
            alone = noise_multiplier(COUNTS_SHARE * privacy.epsilon, self.delta, 1.0, 1)
            beside = (Release(alone, 1.0, 1),)
        rate = privacy.sampling_rate
        self.sigma = noise_multiplier(privacy.epsilon, self.delta, rate, steps, beside)
        self.counts = beside
        self.phase = Release(self.sigma, rate, privacy.steps)
        self.round = Release(self.sigma, rate, privacy.steps * self.phases)
        everything = [(part.x, part.y) for part in (data.train, data.val, data.test)]
        path = ledgers / f"{data_digest(everything)}.json"
        self.budget = Budget(Ledger(path), privacy.epsilon, self.delta)
        self._phases_paid, self._counts_paid = 0, False

    def charge(self, *, counts: bool) -> None:
        """Charge one round, before anything of it is released.

        Args:
            counts: whether the round also releases the method's counts.

        Raises:
            BudgetSpent: the round would exceed the budget.
        """
        self._phases_paid, self._counts_paid = 0, False
        self.budget.charge([self.round, *(self.counts if counts else ())])
        self._phases_paid, self._counts_paid = self.phases, counts

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

    def noised(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Counts [C] with noise for one example more or less, which changes one of them by 1.

        Raises:
            ClientError: no counts were charged for this round, or they were released already.
        """
        if not self._counts_paid:
            raise ClientError(
                "privacy: this round was not charged for counts; set releases_counts and keep "
                "the noised counts, which may be sent again"
            )
        self._counts_paid = False
        noise = torch.randn(counts.shape, generator=generator)
        return (counts + self.counts[0].sigma * noise).clamp_min(0)

    def epsilon(self, accountant: str) -> float:
        """What was spent so far, over all runs that the ledger knows of."""
        if accountant == "prv":
            return tight_epsilon_of(self.budget.ledger.releases, self.delta)
        return self.budget.spent


def check_client(config: Config, client: str, examples: int) -> None:
    """Refuse settings that protect nothing at a client of so many training examples.

    Raises:
        ConfigError: naming the client, the setting and the cure.
    """
    privacy = config.privacy
    if examples == 0:
        return  # it has nothing to release, and sends what it received
    if privacy.delta is not None and privacy.delta * examples >= 1:
        takes = f"a number < {1 / examples:.2g}, for client {client} has {examples} examples"
        raise ConfigError("privacy.delta", privacy.delta, takes, "leave it out for a safe default")
    if privacy.sampling_rate * examples < 1:
        takes = f"a number >= {1 / examples:.2g}, for client {client} has {examples} examples"
        raise ConfigError("privacy.sampling_rate", privacy.sampling_rate, takes)
