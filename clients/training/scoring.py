"""How well a client's models predict: on its own examples, and on others'."""

from __future__ import annotations

import operator
import random
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from clients.base import LocalAlgorithm
from clients.training.features import FeatureCache
from clients.training.view import ModelView
from fedpers.compute import CPU
from fedpers.data import Examples, FederatedData
from fedpers.evaluation import ClientResult
from fedpers.models import PersonalModel
from fedpers.outputs import Outputs
from fedpers.parts import Part, Parts
from fedpers.seeding import seed_for

VALIDATION, TEST, OUTSIDE = "validation", "test", "outside"
POOL = 5  # of the examples wanted of others, how many are gathered before they are drawn


class Splits(ModelView):
    """A view that runs the model once for all of a client's splits, when a method asks for the
    outputs of the first of them: one pass of many examples is faster than several of few.

    Args:
        splits: the inputs of each, [n, ...].
    """

    def __init__(
        self, model: PersonalModel, algorithm: LocalAlgorithm, splits: Sequence[Tensor]
    ) -> None:
        super().__init__(model, algorithm)
        self.algorithm: LocalAlgorithm = algorithm
        self._splits, self._sizes = splits, [len(x) for x in splits]
        self._filled: list[Part] = []
        self._found: list[Outputs] = []

    def outputs(self, filling: Mapping[str, str], working: Parts, x: Tensor) -> Outputs:
        """As any view's."""
        place = next((k for k, own in enumerate(self._splits) if own is x), None)
        if place is None:
            return super().outputs(filling, working, x)
        filled = [working[filling[slot]] for slot in self.algorithm.slots if slot in filling]
        if len(filled) != len(self._filled) or not all(map(operator.is_, filled, self._filled)):
            whole = super().outputs(filling, working, torch.cat([*self._splits]))
            ends = [*accumulate(self._sizes)]
            self._found = [
                whole.take(slice(end - size, end))
                for end, size in zip(ends, self._sizes, strict=True)
            ]
            self._filled = filled
        return self._found[place]


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
        local: LocalAlgorithm,
        data: FederatedData,
        examples: FederatedData | FeatureCache,
        model: PersonalModel,
    ) -> None:
        self.algorithm, self.local, self.config = algorithm, local, algorithm.config
        self.data, self.examples = data, examples
        self.model, self.device = model, model.device
        self._outside: dict[str, Examples] = {}
        self._before: dict[str, dict[str, Tensor]] = {}

    def score(
        self, client: str, came: Parts, working: Parts, baseline: Parts, *, common: bool = True
    ) -> ClientResult:
        """The tally of each model that a client has, on each of its splits.

        Args:
            came: the client's parts before it tuned any: the global model is of these, whatever
                a method trains in place for its personal one.
            working: the same, tuned, with what the method recalls of its examples.
            baseline: its local-only model; empty without one.
            common: what it received was the same for all; else there is no global model.
        """
        split = self.examples.client(client)
        sets = {VALIDATION: split.val, TEST: split.test}
        if self.config.evaluation.outside:
            sets[OUTSIDE] = self.others(client).to(self.device)
        scores: dict[str, dict[str, Tensor]] = {name: {} for name in sets}

        def predict(mode: str, view: Splits, parts: Parts, called: str) -> None:
            for name, examples in sets.items():
                found = view.algorithm.predict(called, parts, examples.x, view, name)
                if found is not None:
                    scores[name][mode] = found.cpu()

        inputs = [examples.x for examples in sets.values()]
        view = Splits(self.model, self.algorithm, inputs)  # where both are one model it runs once
        predict("personal", view, working, "personal")
        if common:
            predict("global", view, working | came, "global")
        if self.data.task.has_base:
            for name, found in self._base(client, view, sets).items():
                scores[name]["base"] = found
        if baseline:
            predict("local", Splits(self.model, self.local, inputs), baseline, "personal")
        tallies = {
            name: self.data.task.tally(scores[name], examples.y.cpu(), detail=name == TEST)
            for name, examples in sets.items()
        }
        return ClientResult(
            client=client,
            train=len(split.train),
            val=tallies[VALIDATION],
            test=tallies[TEST],
            outside=tallies.get(OUTSIDE),
        )

    def _base(
        self, client: str, view: Splits, sets: Mapping[str, Examples]
    ) -> Mapping[str, Tensor]:
        """What the model says that training starts from, of each split: once is enough."""
        if client not in self._before:
            filling, initial = {slot: slot for slot in self.algorithm.slots}, self.algorithm.initial
            self._before[client] = {
                name: view.outputs(filling, initial, examples.x).scores.cpu()
                for name, examples in sets.items()
            }
        return self._before[client]

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
