"""How well a client's models predict: on its own examples, and on others'."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from clients.base import LocalAlgorithm
from clients.methods.local import Local
from clients.training.features import FeatureCache
from clients.training.trainer import ModelView
from fedpers.compute import CPU
from fedpers.data import Examples, FederatedData
from fedpers.evaluation import ClientResult
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from fedpers.seeding import seed_for
from fedpers.tasks.base import Tally

POOL = 5  # of the examples wanted of others, how many are gathered before they are drawn


class Scoring:
    """Scores the clients of a host.

    Args:
        algorithm: the method.
        local: the local-only baseline.
        data: the clients.
        examples: theirs, as the model takes them.
        model: the resident model.
    """

    def __init__(
        self,
        algorithm: LocalAlgorithm,
        local: Local,
        data: FederatedData,
        examples: FederatedData | FeatureCache,
        model: PersonalModel,
    ) -> None:
        self.algorithm, self.local, self.config = algorithm, local, algorithm.config
        self.data, self.examples, self.device = data, examples, model.device
        self.view = ModelView(model, algorithm)
        self._plain = ModelView(model, local)
        self._outside: dict[str, Examples] = {}

    def score(
        self, client: str, working: Parts, baseline: Parts, *, common: bool = True
    ) -> ClientResult:
        """The tally of each model that a client has, on each of its splits.

        Args:
            working: the client's parts, with what the method recalls of its examples.
            baseline: its local-only model; empty without one.
            common: what it received was the same for all; else there is no global model.
        """
        split = self.examples.client(client)
        sets = [split.val, split.test]
        if self.config.evaluation.outside:
            sets.append(self.others(client).to(self.device))
        x, sizes = torch.cat([examples.x for examples in sets]), [len(e) for e in sets]
        scores: dict[str, Sequence[Tensor]] = {}

        def predict(mode: str, found: Tensor | None) -> None:
            if found is not None:
                scores[mode] = torch.split(found.cpu(), sizes)

        predict("personal", self.algorithm.predict("personal", working, x, self.view))
        if common and self._one_model:
            scores["global"] = scores["personal"]
        elif common:
            predict("global", self.algorithm.predict("global", working, x, self.view))
        if baseline:
            predict("local", self.local.predict("personal", baseline, x, self._plain))

        def tally(k: int, *, detail: bool = False) -> Tally:
            found = {mode: of_sets[k] for mode, of_sets in scores.items()}
            return self.data.task.tally(found, sets[k].y.cpu(), detail=detail)

        return ClientResult(
            client=client,
            train=len(split.train),
            val=tally(0),
            test=tally(1, detail=True),
            outside=tally(2) if len(sets) > 2 else None,
        )

    @cached_property
    def _one_model(self) -> bool:
        """Whether a client's personal model is the global one."""
        if type(self.algorithm).predict is not LocalAlgorithm.predict:
            return False
        personal = self.algorithm.filled("personal")
        return personal is not None and personal == self.algorithm.filled("global")

    def others(self, client: str) -> Examples:
        """A seeded sample of the other clients' test examples, the same in every round. It waits on
        the CPU: there is one for each client."""
        if client not in self._outside:
            wanted = self.config.evaluation.outside
            rng = random.Random(seed_for(self.config.seed, "outside", client))
            everyone = self.data.clients
            # So many clients are enough, and few of thousands are looked at.
            drawn = rng.sample(everyone, min(len(everyone), POOL * wanted + 1))
            tests, count = [self.examples.client(client).test.to(CPU).take(torch.arange(0))], 0
            for other in drawn:
                if other == client:
                    continue
                tests.append(self.examples.client(other).test.to(CPU))
                count += len(tests[-1])
                if count >= POOL * wanted:
                    break
            pool = Examples(torch.cat([t.x for t in tests]), torch.cat([t.y for t in tests]))
            chosen = rng.sample(range(len(pool)), min(wanted, len(pool)))
            self._outside[client] = pool.take(torch.tensor(chosen, dtype=torch.int64))
        return self._outside[client]
