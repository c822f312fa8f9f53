"""What a client's models are right and wrong about: on its own examples, and on others'."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clients.trainer import Trainer
from fedpers.compute import CPU
from fedpers.data import Examples
from fedpers.evaluation import ClientResult, Counts
from fedpers.parts import Parts
from fedpers.seeding import seed_for

if TYPE_CHECKING:
    from clients.host import ClientHost

POOL = 5  # of the examples wanted of others, how many are gathered before they are drawn


class Scoring:
    """Scores the clients of a host.

    Args:
        host: whose examples and methods these are.
    """

    def __init__(self, host: ClientHost) -> None:
        self.host = host
        self._outside: dict[str, Examples] = {}

    def score(
        self, trainer: Trainer, plain: Trainer, working: Parts, baseline: Parts
    ) -> ClientResult:
        """Right and wrong answers of each model that a client has, on each of its splits.

        Args:
            trainer: with the method's forward pass.
            plain: with the plain model's, in which the local-only baseline predicts.
            working: the client's parts.
            baseline: its local-only model; empty without one.
        """
        host, client = self.host, trainer.client
        split = host.examples.client(client)

        def count(examples: Examples, *, detail: bool = False) -> Counts:
            logits: dict[str, Tensor] = {}
            for mode in ("personal", "global"):
                scores = host.algorithm.predict(mode, working, examples.x, trainer)
                if scores is not None:
                    logits[mode] = scores.cpu()
            if baseline:
                scores = host.local.predict("personal", baseline, examples.x, plain)
                assert scores is not None
                logits["local"] = scores.cpu()
            return Counts.of_logits(examples.y.cpu(), logits, detail=detail)

        wanted = host.config.evaluation.outside
        return ClientResult(
            client=client,
            train=len(split.train),
            val=count(split.val),
            test=count(split.test, detail=True),
            outside=count(self.others(client)) if wanted else None,
        )

    def others(self, client: str) -> Examples:
        """A seeded sample of the other clients' test examples, the same in every round. It waits on
        the CPU: there is one for each client."""
        if client not in self._outside:
            host = self.host
            wanted = host.config.evaluation.outside
            rng = random.Random(seed_for(host.config.seed, "outside", client))
            everyone = host.data.clients
            # So many clients are enough, and few of thousands are looked at.
            drawn = rng.sample(everyone, min(len(everyone), POOL * wanted + 1))
            tests, count = [host.examples.client(client).test.to(CPU).take(torch.arange(0))], 0
            for other in drawn:
                if other == client:
                    continue
                tests.append(host.examples.client(other).test.to(CPU))
                count += len(tests[-1])
                if count >= POOL * wanted:
                    break
            pool = Examples(torch.cat([t.x for t in tests]), torch.cat([t.y for t in tests]))
            chosen = rng.sample(range(len(pool)), min(wanted, len(pool)))
            self._outside[client] = pool.take(torch.tensor(chosen, dtype=torch.int64))
        return self._outside[client]
