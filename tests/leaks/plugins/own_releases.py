"""Releases that the account did not pay for."""

import torch

from clients.methods.fedavg import FedAvg


class Releases(FedAvg):
    accounted = True

    def conclude(self, working, trainer):
        if trainer.account is None:
            return working
        source = trainer.account.sources(trainer.server_round, trainer.client, "more")
        head = working["head"]
        return working | {"head": head.like(head.vector + self.released(source, trainer))}


class WithLittleNoise(Releases):
    def released(self, source, trainer):
        return source.noised(trainer.examples.x.mean().reshape(1), 1e-9)


class WithoutNoise(Releases):
    def released(self, source, trainer):
        return source.noised(trainer.examples.x.mean().reshape(1), 0.0)


class WithNoiseUnpaid(Releases):
    def released(self, source, trainer):
        rows = trainer.examples.x.flatten(1)[:, :1]
        factors = 1 / rows.norm(dim=1).clamp_min(1)
        source.witness([rows], factors)
        return trainer.account.phase.mechanism.noised(factors @ rows, 1.0, source)


class ShownOthers(Releases):
    """It shows harmless rows, and noises something else."""

    def released(self, source, trainer):
        source.witness([torch.zeros(len(trainer.examples), 1)], torch.ones(len(trainer.examples)))
        mean = trainer.examples.x.mean().reshape(1)
        return trainer.account.phase.mechanism.noised(mean, 1.0, source)


class Longer(Releases):
    """Rows beyond the bound."""

    def released(self, source, trainer):
        rows = 100 * trainer.examples.x.flatten(1)[:, :1]
        source.witness([rows], torch.ones(len(rows)))
        return 1e-3 * trainer.account.phase.mechanism.noised(rows.sum(dim=0), 1.0, source)


class OwnNoise(Releases):
    """Normals drawn beside the door."""

    def released(self, source, trainer):
        return trainer.examples.x.mean() + source.normal(1).float()
