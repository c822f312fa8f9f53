"""Counts of which an example decides more than one, or that no noise covers."""

import torch
import torch.nn.functional as F

from clients.labels import COUNTS, smoothed
from clients.methods.prior import Prior
from fedpers.parts import Part


class Counts(Prior):
    accounted = True

    def labels(self, trainer):
        return F.one_hot(trainer.examples.y, trainer.task.outputs).float()

    def train(self, working, trainer):
        working = super(Prior, self).train(working, trainer)
        if COUNTS not in working:
            working = working | {COUNTS: Part.of({"counts": self.counted(trainer)})}
        own = smoothed(working[COUNTS]["counts"].abs())
        return working | {"prior": Part.of({"prior.own": own, "prior.population": own})}


class InTheClear(Counts):
    def counted(self, trainer):
        return self.labels(trainer).sum(dim=0)


class Ranked(Counts):
    """What an example adds hangs on the others: its rank among them."""

    def counted(self, trainer):
        ranks = trainer.examples.x.flatten(1).sum(dim=1).argsort().argsort().float()
        return trainer.release_counts(self.labels(trainer) * ranks[:, None] / len(ranks))


class Normalised(Counts):
    def counted(self, trainer):
        labels = self.labels(trainer)
        return trainer.release_counts(labels / labels.sum(dim=0).clamp_min(1))


class Multiplied(Counts):
    """Beside the noised counts, a mean."""

    def counted(self, trainer):
        mean = trainer.examples.x.mean()
        return trainer.release_counts(self.labels(trainer)) * (1 + mean.abs())


class TwiceNoised(Counts):
    """Counts of values without bound, with noise of its own making."""

    def counted(self, trainer):
        source = trainer.account.sources(trainer.server_round, trainer.client, "values")
        return source.noised(trainer.examples.x.sum() * torch.ones(trainer.task.outputs), 1.0)


class EveryRound(Counts):
    """Charged once, released in each round."""

    def train(self, working, trainer):
        kept = {n: p for n, p in working.items() if n != COUNTS}
        return super().train(type(working)(kept), trainer)

    def counted(self, trainer):
        source = trainer.account.sources(trainer.server_round, trainer.client, "labels")
        labels = self.labels(trainer)
        source.witness([labels], torch.ones(len(labels)))
        (release,) = trainer.account.once.values()
        return release.mechanism.noised(labels.sum(dim=0), 1.0, source)
