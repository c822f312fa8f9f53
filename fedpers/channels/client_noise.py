"""Privacy whose unit is the client (McMahan et al. 2018, DP-FedAvg, arXiv 1710.06963): a channel
around another, at the server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedpers.channels.base import Channel, Mixed, Needs, Opening, Reveals, State, Turn
from fedpers.channels.wire import Answers
from fedpers.config import Config, Privacy
from fedpers.errors import ConfigError
from fedpers.mixing import Mixing
from fedpers.parts import Part, Parts
from fedpers.privacy import (
    Budget,
    BudgetSpent,
    Gaussian,
    Ledger,
    Mechanism,
    Release,
    epsilon_of,
    mechanism_named,
)
from fedpers.privacy.accounting import LARGEST_NOISE, default_delta
from fedpers.privacy.noise import sources
from fedpers.privacy.shares import honest_of
from fedpers.records import Row, in_the_clear
from fedpers.robust import change, too_long

log = logging.getLogger("fedpers")

FEW = "too few shares of the noise came"
EXAMPLE_ONLY = ("weights", "steps", "sampling_rate", "lr")


class ClientNoise(Channel):
    """The noised sum of a population's clipped updates, and its ledger.

    A round releases w + (sum_i clip(u_i - w, C) + noise) / (q N), where each of N clients takes
    part with probability q, by itself: one client more or less changes the sum by C at most. All
    else that is sent on is made of such releases. The server, which sees the updates, is trusted; N
    is taken to be public.

    Around a channel that hides single updates the server, which is not trusted then, sees sums of
    updates to which the clients have added their shares of the noise, enough of them in any
    ``encryption.honest`` of the cohort. It knows who takes part, so that nothing is gained by
    sampling: q is 1 in the account. Where the sums are of integers, so is the noise, and the
    account is of what is really added, rounding included (``fedpers.privacy.shares``). One client
    less is then one whose change is 0.

    Args:
        inner: the channel around which this one is.

    Raises:
        ConfigError: there is no such mechanism, or clients cannot add its noise in shares.
    """

    name = "client noise"
    reveals = Reveals(
        server="every client's clipped update; sums of noised ones where the channel within hides "
        "single updates",
        nodes="noised mixtures alone",
    )

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner.method)
        self.inner, self.shares, self.splits = inner, not inner.in_the_clear, inner.splits
        self.kind = mechanism_named(self.config.privacy.mechanism)
        if self.shares and not self.kind.divisible:
            takes = "under encryption one whose noise clients can add in shares, as gaussian"
            raise ConfigError("privacy.mechanism", self.config.privacy.mechanism, takes)
        if inner.adds_noise and self.kind is not Gaussian:
            takes = f"gaussian in {inner.name} sums, whose account of integers is known"
            raise ConfigError("privacy.mechanism", self.config.privacy.mechanism, takes)
        self.rate = 1.0 if self.shares else self.config.strategy.fraction
        self.mechanism: Mechanism
        self.budget: Budget | None = None
        self.clients = 0
        self.surplus = 1.0  # most that the noise of a sum was, of what it had to be
        self.sources = sources(self.config.privacy.deterministic_for_tests, self.config.seed)

    @classmethod
    def check(cls, config: Config, needs: Needs, weighted: str) -> None:
        """Refuse what cannot be released as one noised sum, and settings that would do nothing."""
        name, cure = config.strategy.name, "set privacy.unit=example"
        takes = "with privacy.unit=client a method whose server takes nothing but a mean"
        if needs.reads is not None:
            takes = f"{takes}; this one reads {needs.reads}"
            raise ConfigError("strategy.name", name, takes, f"or {cure}")
        if weighted == "own" or needs.rows or needs.banks:
            raise ConfigError(
                "strategy.name", name, f"{takes}; this one has weights of its own", cure
            )
        for setting in EXAMPLE_ONLY:
            got, default = getattr(config.privacy, setting), getattr(Privacy(), setting)
            if got != default:
                takes = "nothing with privacy.unit=client, where clients train as without privacy"
                raise ConfigError(f"privacy.{setting}", got, takes, f"leave it out, or {cure}")
        if config.strategy.combine != "mean":
            takes = (
                "mean with privacy.unit=client, whose noise covers a sum of clipped updates only"
            )
            cure = f"set strategy.combine=mean or {cure.removeprefix('set ')}"
            raise ConfigError("strategy.combine", config.strategy.combine, takes, cure)

    def open(self, opening: Opening) -> None:
        """Calibrate the noise for the whole run, and for what is left where the ledger holds
        releases of earlier runs; a run that goes on has the noise that it began with.

        Raises:
            ConfigError: delta protects nobody among so many clients, epsilon is so small that no
                noise is shown to be enough, or nothing is left.
            ClientError: the ledger cannot be read.
        """
        self.inner.open(opening)
        self.clients = clients = opening.clients
        privacy = self.config.privacy
        if privacy.delta is not None and privacy.delta * clients >= 1:
            takes = f"a number < {1 / clients:.2g}, for there are {clients} clients"
            raise ConfigError("privacy.delta", privacy.delta, takes, "leave it out")
        self.delta = privacy.delta or default_delta(clients)
        lasts = self.config.state is not None
        ledger = Ledger.named(opening.state / "ledgers", "population", lasts=lasts)
        self.budget = Budget(ledger, privacy.epsilon, self.delta)
        if opening.resumed:
            return
        self.mechanism = self._calibrated()
        self.inner.take_noise(self.mechanism.sigma)

    def _calibrated(self) -> Mechanism:
        assert self.budget is not None
        epsilon = self.config.privacy.epsilon
        try:
            return self.budget.calibrated(self.kind, self.rate, self.config.rounds)
        except BudgetSpent:
            if not self.budget.spent:
                most = Release(self.kind(LARGEST_NOISE, self.rate), self.config.rounds)
                least, at = epsilon_of([most], self.delta), f"at delta {self.delta:.1g}"
                takes = f"a number > {least:.2g}, the least that is kept to {at}"
                raise ConfigError("privacy.epsilon", epsilon, takes) from None
            takes = f"more than the {self.budget.spent:.3g} that earlier runs have spent"
            cure = "or another state folder, if its clients are others"
            raise ConfigError("privacy.epsilon", epsilon, takes, cure) from None

    def admits(self, said: Mapping[str, Any]) -> str | None:
        """As the channel within."""
        return self.inner.admits(said)

    def cohort(self, server_round: int, clients: Sequence[str]) -> list[str] | None:
        """Each client with probability q, of a trusted server. Who it was is not to be known: the
        draw is secret."""
        if self.shares:
            return None
        drawn = self.mechanism.sample(len(clients), self.sources("cohort", server_round))
        return [clients[k] for k in drawn.tolist()]

    def begin(self, server_round: int, cohort: Sequence[str]) -> None:
        """Charge the round, before anything is released."""
        self.inner.begin(server_round, cohort)
        if self.shares:
            self.inner.fewest = self.least_answers(len(cohort))
        if self.shares and not self.inner.adds_noise:
            self._check_range(len(cohort))
        assert self.budget is not None
        self.budget.charge([Release(self.mechanism, 1)])

    def _check_range(self, cohort: int) -> None:
        """Refuse shares of the noise that would be clipped: what is clipped is no longer Gaussian.

        Raises:
            ConfigError: a range below four standard deviations of a share.
        """
        norm = self.config.privacy.max_grad_norm
        least = 4 * self.mechanism.sigma * norm / self.honest(cohort) ** 0.5
        if self.config.encryption.range < least:
            takes = f"{least:.3g} or more, so that clients' shares of the noise fit"
            raise ConfigError("encryption.range", self.config.encryption.range, takes)

    def honest(self, cohort: int) -> int:
        """How many of a cohort have to add their share of the noise."""
        return honest_of(self.config.encryption.honest, cohort)

    def header(self, asked: Sequence[str]) -> dict[str, Any]:
        """What the channel within says, and of shares how large they are."""
        header = self.inner.header(asked)
        if self.shares and self.budget is not None:
            header["noise"] = {"sigma": self.mechanism.sigma, "honest": self.honest(len(asked))}
        return header

    def foresee(self, clients: Sequence[str]) -> dict[str, float]:
        """As the channel within."""
        return self.inner.foresee(clients)

    @property
    def later(self) -> bool:
        """As the channel within."""
        return self.inner.later

    def accept(self, client: str, sent: Row, update: Row) -> str | None:
        """As the channel within; and its change is not longer than the clipping norm."""
        reason = self.inner.accept(client, sent, update)
        if reason is None and not self.shares:
            norm = self.config.privacy.max_grad_norm
            reason = too_long(in_the_clear(sent), in_the_clear(update), norm)
        return reason

    def gather(
        self, server_round: int, mixing: Mixing, reports: Mapping[str, Any], answers: Answers
    ) -> None:
        """As the channel within."""
        self.inner.gather(server_round, mixing, reports, answers)

    def mix(self, turn: Turn, mixing: Mixing, updates: Mapping[str, Row]) -> Mixed:
        """What was sent plus the noised mean change; or the sum within, if enough shares of the
        noise are in it."""
        if not self.shares:
            given = {client: in_the_clear(update) for client, update in updates.items()}
            return Mixed([self._noised(turn.server_round, in_the_clear(turn.sent), given)])
        asked = len(turn.asked)
        if len(updates) < self.least_answers(asked):
            return Mixed(unused=FEW)  # nor is the sum opened
        mixed = self.inner.mix(turn, mixing, updates)
        answered = len(set(updates) - set(mixed.failures))
        if mixed.unused is not None:
            return mixed
        if answered < self.least_answers(asked):
            return Mixed(failures=mixed.failures, unused=FEW)
        self.surplus = max(self.surplus, (answered / self.honest(asked)) ** 0.5)
        return mixed

    def least_answers(self, cohort: int) -> int:
        """How many of a cohort have to answer until the honest ones' noise is whole."""
        return self.honest(cohort) + self.inner.corrupted(cohort)

    def _noised(self, server_round: int, sent: Parts, updates: Mapping[str, Parts]) -> Parts:
        """The next global parts, from what was sent and the cohort's updates, of which there may be
        none."""
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
            mixed[name] = part.like(part.vector.double() + total / (self.rate * self.clients))
        return Parts(mixed)

    def least(self, clients: int) -> int:
        """A round releases what it was charged for whoever answers, be it noise alone: whether it
        does must not hang on clients' data. Where clients add the noise there is none without
        them."""
        return 1 if self.shares else 0

    def reveal(self, row: Row) -> Parts:
        """As the channel within."""
        return self.inner.reveal(row)

    def derived(self, name: str) -> Part:
        """As the channel within."""
        return self.inner.derived(name)

    def compare(
        self, models: Mapping[str, Row], weights: Callable[[Mapping[str, Parts]], Tensor]
    ) -> dict[str, Tensor]:
        """As the channel within."""
        return self.inner.compare(models, weights)

    def mix_slots(self, weights: Tensor, updates: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """As the channel within."""
        return self.inner.mix_slots(weights, updates, names)

    def join(self, row: Row, update: Row, names: Sequence[str]) -> Row:
        """As the channel within."""
        return self.inner.join(row, update, names)

    def state(self) -> State:
        """The noise multiplier, and what the channel within keeps."""
        groups, values = self.inner.state()
        own = {"sigma": self.mechanism.sigma, "surplus": self.surplus}
        return groups, {**values, **own}

    def load_state(self, groups: Mapping[str, Row], values: Mapping[str, Any]) -> None:
        """As the channel within; the noise multiplier."""
        self.inner.load_state(groups, values)
        self.mechanism = self.kind(values["sigma"], self.rate)
        self.surplus = float(values.get("surplus", 1.0))
        self.inner.take_noise(self.mechanism.sigma)

    def spending(self) -> dict[str, Mapping[str, Any]]:
        """Of the one budget for all: epsilon so far at its delta, mu of Gaussian DP, and the noise
        multiplier."""
        if self.budget is None:
            none = {"epsilon": 0.0, "delta": None, "mu": 0.0, "sigma": None}
            return {"population": none}
        spent = {"epsilon": self.budget.spent, "delta": self.delta, "mu": self.budget.mu}
        return {"population": {**spent, "sigma": self.mechanism.sigma}}

    def figures(self) -> dict[str, Any]:
        """As the channel within."""
        return self.inner.figures()

    def notes(self) -> list[str]:
        """Who adds the noise."""
        said = ["the server is trusted: it sees single updates, and adds the noise"]
        if self.shares:
            honest = f"{100 * self.config.encryption.honest:g} %"
            said = [f"clients add the noise: it is whole if {honest} of those asked are honest"]
            more = f"the noise was up to {self.surplus:.2f} times as large, as more answered"
            said += [more] if self.surplus > 1 else []
        return [*said, *self.inner.notes()]

    def close(self) -> None:
        """As the channel within."""
        self.inner.close()
