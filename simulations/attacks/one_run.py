"""A lower bound on epsilon from one run with inserted canaries, by the clients' real code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clients.node.host import ClientHost
from clients.node.store import ClientStore
from clients.training.account import Account
from clients.training.optimizers import decayed
from clients.training.trainer import Trainer
from fedpers.config import Config
from fedpers.context import Context
from fedpers.data import Examples
from fedpers.errors import ConfigError
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent, Gaussian, Release
from fedpers.privacy.audit.membership import auc
from fedpers.privacy.audit.one_run import (
    guess,
    inclusion_scores,
    mu_by_guesses,
    mu_by_projection,
)
from fedpers.privacy.gdp import epsilon_at
from fedpers.privacy.noise import Source
from fedpers.seeding import torch_generator
from fedpers.tasks.base import Task
from simulations.attacks.audited import Replaced, audited, start_over

CANARIES = 4000
MEMORY = 2**27  # scalars of all canaries' influences, held at once: 512 MiB
BESIDE = 32  # own examples that the client trains on beside the one whose influence is measured


def lower_bound(config: Config, *, canaries: int | None = None) -> dict[str, Any]:
    """An empirical lower bound on epsilon, to be below what the ledger says.

    Canaries (random inputs with random labels) are put among one client's training examples, each
    by a fair coin. The server, which here is the attacker, sends that client the same model in
    every round of the run and sees all its uploads. It knows everything but the coins: what the
    client has besides, and what each canary would add to an upload, measured by training without
    noise. With a sound method and one step a round that is the canary's clipped gradient; an
    unsound one may leak in other ways, and they count as well. The size of the data set is public:
    an upload is scaled by it.

    Below a sampling rate of 1 the server does not know which of the client's own examples were
    drawn: it looks only where none of them adds anything, if that leaves half of all directions.

    Args:
        config: the run's settings, with ``privacy.enabled``.
        canaries: how many; None: 4000, or as many as fit into memory. The more, the tighter.

    Returns:
        claimed (by the ledger, after the run), at least (the bound for noised sums), at least for
        any mechanism, delta, sigma, rounds, and the guesses.

    Raises:
        ConfigError: the canaries do not fit into memory.
    """
    with audited(config) as host:
        client = max(host.data.clients, key=host.data.size)
        own = host.data.client(client).train
        broadcast = host.algorithm.declared
        scalars = len(_flat(broadcast))
        most = MEMORY // scalars
        canaries = min(CANARIES, most) if canaries is None else canaries
        if canaries > most:
            takes = f"an integer <= {most}, for a client sends {scalars} scalars"
            raise ConfigError("canaries", canaries, takes)
        extra = random_examples(own, host.data.task, canaries, config.seed)
        included = _coins(config, "coins", canaries)
        noiseless = Noiseless(host, client, own, extra, broadcast)
        influences = noiseless.influences(torch.arange(canaries))
        with_them, without = noiseless.halves(included)
        half, other = noiseless.halves(_coins(config, "half", canaries))
        hidden = torch.zeros(scalars, 0)
        if config.privacy.sampling_rate < 1 and len(own) <= min(scalars // 2, most):
            hidden = torch.linalg.qr(noiseless.influences(noiseless.own).T).Q
        train = joined(own, extra.take(included.nonzero().view(-1)))
        observed, rounds, report = _observed(host, client, train, noiseless)

    delta = report["delta"]
    for rows in torch.split(influences, 256):
        rows.copy_(_apart(rows, hidden))
    # Guesses are made without the coins, on which the second expectation hangs.
    guessed_from = _apart(observed - (half + other) / 2, hidden)
    scores = inclusion_scores(guessed_from, influences)
    guesses, correct = guess(scores, included)
    observed = _apart(observed - (with_them + without) / 2, hidden)
    shift = _apart((with_them - without) / 2, hidden)
    mu = mu_by_projection(observed, shift, influences, included, hidden=hidden.shape[1])
    return {
        "claimed": report["epsilon"],
        "at_least": epsilon_at(mu, delta),
        "at_least_any": epsilon_at(mu_by_guesses(canaries, guesses, correct), delta),
        "delta": delta,
        "sigma": report["sigma"],
        "rounds": rounds,
        "canaries": canaries,
        "guesses": guesses,
        "correct": correct,
        "auc": auc(scores[included].numpy(), scores[~included].numpy()),
    }


def _observed(
    host: ClientHost, client: str, train: Examples, noiseless: Noiseless
) -> tuple[Tensor, int, dict[str, Any]]:
    """By how much uploads, trained on ``train``, move from what was received, [d], times what the
    client divides by, at the learning rate of round 1; the mean over all rounds, their number, and
    the last report."""
    start_over(host, Replaced(host.data, {client: train}))
    config, total, rounds, report = host.config, torch.zeros(()), 0, dict[str, Any]()
    for server_round in range(1, config.rounds + 1):
        try:
            upload, report = host.train(client, server_round, noiseless.broadcast)
        except BudgetSpent:
            break
        divisor = report["examples"] if config.privacy.protects_counts else len(train)
        change = divisor * (_flat(upload) - _flat(noiseless.broadcast) - noiseless.still)
        total = total + change / decayed(1.0, config, server_round)
        rounds += 1
    return total / rounds, rounds, report


class _Free(Account):
    """For the auditor's own trainings, which are not released: no noise and no charge."""

    def take_phase(self) -> Release:
        """The steps of a phase, on all examples."""
        return Release(Gaussian(0.0, 1.0), self.phase.steps)

    def expected(self, examples: int) -> float:
        """All that there are."""
        return examples

    def noised(self, what: str, counts: Tensor, source: Source) -> Tensor:
        """The counts as they are."""
        return counts


class Noiseless:
    """What a client's first upload would be without noise, on canaries and its own examples.

    Args:
        host: its data become canaries and own examples.
        broadcast: what the client receives.
    """

    def __init__(
        self, host: ClientHost, client: str, own: Examples, extra: Examples, broadcast: Parts
    ) -> None:
        start_over(host, Replaced(host.data, {client: joined(extra, own)}))
        self.host, self.client, self.broadcast = host, client, broadcast
        self.own = torch.arange(len(own)) + len(extra)
        self.examples = host.examples.client(client).train
        store, data = ClientStore(host.stores, client), host.data.client(client)
        known = (client, data, host.ledgers, store, host.sources)
        self.account = _Free(host.config, host.algorithm.releases(), *known)
        # What an upload is that no example moves: weight decay shrinks it all the same.
        privacy = replace(host.config.privacy, max_grad_norm=1e-12)
        self.still = torch.zeros(())
        self.still = self.change(self.own[:1], replace(host.config, privacy=privacy))

    def change(self, rows: Tensor, config: Config | None = None) -> Tensor:
        """By how much the upload, trained on some examples, moves from what was received, [d];
        times their number, by which the client divides."""
        host = self.host
        trainer = Trainer(
            config or host.config,
            host.model,
            host.algorithm,
            self.examples.take(rows),
            server_round=1,
            client=self.client,
            account=self.account,
        )
        working = host.algorithm.receive(self.broadcast, Parts(), Context(self.client, 1))
        upload = host.algorithm.upload(host.algorithm.train(working, trainer))
        return len(rows) * (_flat(upload) - _flat(self.broadcast) - self.still)

    def influences(self, rows: Tensor) -> Tensor:
        """What each of some examples adds beside a few of the client's own, float32 [rows, d]."""
        beside = self.own[:BESIDE]
        base = self.change(beside)
        found = torch.empty(len(rows), len(base))
        for k, row in enumerate(rows):
            found[k] = self.change(torch.cat([row[None], beside])) - base
        return found

    def halves(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        """The change on all own examples and the canaries ``inside`` [m]; and on the other ones."""
        chosen = (inside.nonzero().view(-1), (~inside).nonzero().view(-1))
        first, second = (self.change(torch.cat([c, self.own])) for c in chosen)
        return first, second


def _coins(config: Config, purpose: str, count: int) -> Tensor:
    return torch.rand(count, generator=torch_generator(config.seed, "audit", purpose)) < 0.5


def _apart(x: Tensor, basis: Tensor) -> Tensor:
    """What of x, [d] or [n, d], is at right angles to an orthonormal basis [d, k]."""
    basis = basis.to(x)
    return x - (x @ basis) @ basis.T


def _flat(parts: Parts) -> Tensor:
    return torch.cat([part.vector.double() for part in parts.values()])


def joined(*pieces: Examples) -> Examples:
    """Examples one after another."""
    return Examples(torch.cat([p.x for p in pieces]), torch.cat([p.y for p in pieces]))


def random_examples(like: Examples, task: Task, count: int, seed: int) -> Examples:
    """Inputs drawn evenly from the range of the given ones (tokens: from those in use), with
    random targets."""
    generator = torch_generator(seed, "audit", "canaries")
    y = task.made_up(count, generator)
    if not like.x.is_floating_point():
        ids, mask = like.x[:, 0], like.x[:, 1]
        chosen = torch.randint(ids.numel(), (count, ids.shape[1]), generator=generator)
        return Examples(torch.stack([ids.flatten()[chosen], mask[:1].expand(count, -1)], 1), y)
    low, high = like.x.amin(), like.x.amax()
    x = torch.rand((count, *like.x.shape[1:]), generator=generator)
    return Examples(low + (high - low) * x, y)
