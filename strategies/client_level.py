"""Privacy whose unit is the client (McMahan et al. 2018, DP-FedAvg, arXiv 1710.06963)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch

from fedpers.config import Config, Privacy
from fedpers.errors import ConfigError
from fedpers.parts import Part, Parts
from fedpers.privacy import (
    Budget,
    BudgetSpent,
    Ledger,
    Mechanism,
    Release,
    epsilon_of,
    mechanism_named,
)
from fedpers.privacy.accounting import LARGEST_NOISE, default_delta
from fedpers.privacy.noise import sources
from fedpers.robust import change, too_long


class ClientLevel:
    """The noised sum of a population's clipped updates, and its ledger.

    A round releases w + (sum_i clip(u_i - w, C) + noise) / (q N), where each of N clients takes
    part with probability q, by itself: one client more or less changes the sum by C at most. All
    else that is sent on is made of such releases. The server, which sees the updates, is trusted; N
    is taken to be public.

    Under encryption the server, which is not trusted then, sees sums of updates to which the
    clients have added their shares of the noise, enough of them in any ``encryption.honest`` of the
    cohort. It knows who takes part, so that nothing is gained by sampling: q is 1 in the account.

    Args:
        config: the run's settings.

    Raises:
        ConfigError: there is no such mechanism, or clients cannot add its noise in shares.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.shares = config, config.encryption.enabled
        self.kind = mechanism_named(config.privacy.mechanism)
        if self.shares and not self.kind.divisible:
            takes = "under encryption one whose noise clients can add in shares, as gaussian"
            raise ConfigError("privacy.mechanism", config.privacy.mechanism, takes)
        self.rate = 1.0 if self.shares else config.strategy.fraction
        self.mechanism: Mechanism
        self.budget: Budget | None = None
        self.sources = sources(config.privacy.deterministic_for_tests, config.seed)

    def open(self, clients: int, ledgers: Path, *, resumed: bool = False) -> None:
        """Calibrate the noise for the whole run, and for what is left where the ledger holds
        releases of earlier runs.

        Args:
            clients: N.
            ledgers: the folder of the ledger.
            resumed: whether the run goes on with the noise that it began with, see ``load_state``
                of the strategy.

        Raises:
            ConfigError: delta protects nobody among so many clients, epsilon is so small that no
                noise is shown to be enough, or nothing is left.
            ClientError: the ledger cannot be read.
        """
        privacy = self.config.privacy
        if privacy.delta is not None and privacy.delta * clients >= 1:
            takes = f"a number < {1 / clients:.2g}, for there are {clients} clients"
            raise ConfigError("privacy.delta", privacy.delta, takes, "leave it out")
        self.delta = privacy.delta or default_delta(clients)
        ledger = Ledger.named(ledgers, "population", lasts=self.config.state is not None)
        self.budget = Budget(ledger, privacy.epsilon, self.delta)
        if resumed:
            return
        try:
            self.mechanism = self.budget.calibrated(self.kind, self.rate, self.config.rounds)
        except BudgetSpent:
            if not self.budget.spent:
                most = Release(self.kind(LARGEST_NOISE, self.rate), self.config.rounds)
                least, at = epsilon_of([most], self.delta), f"at delta {self.delta:.1g}"
                takes = f"a number > {least:.2g}, the least that is kept to {at}"
                raise ConfigError("privacy.epsilon", privacy.epsilon, takes) from None
            takes = f"more than the {self.budget.spent:.3g} that earlier runs have spent"
            cure = "or another state folder, if its clients are others"
            raise ConfigError("privacy.epsilon", privacy.epsilon, takes, cure) from None

    def cohort(self, server_round: int, clients: Sequence[str]) -> list[str]:
        """Each client with probability q. Who it was is not to be known: the draw is secret."""
        drawn = self.mechanism.sample(len(clients), self.sources("cohort", server_round))
        return [clients[k] for k in drawn.tolist()]

    def honest(self, cohort: int) -> int:
        """How many of a cohort have to add their share of the noise."""
        return max(1, ceil(self.config.encryption.honest * cohort))

    def enough(self, asked: Mapping[str, Sequence[str]], came: Mapping[str, Any]) -> bool:
        """Whether so many shares of the noise came that they add up to all of it."""
        return len(came) >= self.honest(sum(len(clients) for clients in asked.values()))

    def charge(self) -> None:
        """Charge one round, before it is released."""
        assert self.budget is not None
        self.budget.charge([Release(self.mechanism, 1)])

    def too_far(self, sent: Parts, update: Parts) -> str | None:
        """Why an update may not be added, if its change is longer than the clipping norm."""
        return too_long(sent, update, self.config.privacy.max_grad_norm)

    def mixed(
        self, server_round: int, sent: Parts, updates: Mapping[str, Parts], clients: int
    ) -> Parts:
        """The next global parts, from what was sent and the cohort's updates, of which there may
        be none.

        Args:
            clients: N.
        """
        norm, source = self.config.privacy.max_grad_norm, self.sources("population", server_round)
        mixed: dict[str, Part] = {}
        scales = {}
        for client, update in updates.items():  # exactly C at most, whatever rounding did
            length = max(change(sent, update), 1e-30)
            scales[client] = min(1.0, norm / length)
        for name, part in sent.items():
            # In float64, whose rounding changes a sum by far less than one client does.
            total = torch.zeros(part.layout.size, dtype=torch.float64)
            for client, update in updates.items():
                total += scales[client] * (update[name].vector.double() - part.vector.double())
            total = self.mechanism.noised(total, norm, source)
            mixed[name] = part.like(part.vector.double() + total / (self.rate * clients))
        return Parts(mixed)

    def spending(self) -> dict[str, Any]:
        """Epsilon so far at its delta, mu of Gaussian DP, and the noise multiplier."""
        if self.budget is None:
            return {"epsilon": 0.0, "delta": None, "mu": 0.0, "sigma": None}
        spent = {"epsilon": self.budget.spent, "delta": self.delta, "mu": self.budget.mu}
        return {**spent, "sigma": self.mechanism.sigma}


EXAMPLE_ONLY = ("weights", "steps", "sampling_rate", "lr")


def check_client_level(config: Config, reads: str | None, own_mixing: bool) -> None:
    """Refuse what cannot be released as one noised sum, and settings that would do nothing.

    Args:
        reads: what the method's server reads of single clients' updates; None for nothing.
        own_mixing: the method has weights or rows of its own.

    Raises:
        ConfigError: naming the setting and the cure.
    """
    name, cure = config.strategy.name, "set privacy.unit=example"
    takes = "with privacy.unit=client a method whose server takes nothing but a mean"
    if reads is not None:
        raise ConfigError("strategy.name", name, f"{takes}; this one reads {reads}", f"or {cure}")
    if own_mixing:
        raise ConfigError("strategy.name", name, f"{takes}; this one has weights of its own", cure)
    for setting in EXAMPLE_ONLY:
        got, default = getattr(config.privacy, setting), getattr(Privacy(), setting)
        if got != default:
            takes = "nothing with privacy.unit=client, where clients train as without privacy"
            raise ConfigError(f"privacy.{setting}", got, takes, f"leave it out, or {cure}")
