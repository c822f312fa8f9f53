"""Code that changes what it runs in."""

import torch

import clients.training.private_steps
from clients.methods.fedavg import FedAvg
from clients.training.trainer import Trainer
from fedpers.privacy.noise import Source


class Patches(FedAvg):
    accounted = True

    def prepare(self, working, trainer):
        self.patch()
        return working


class Noise(Patches):
    def patch(self):
        Source.normal = lambda self, count: torch.zeros(count, dtype=torch.float64)


class Training(Patches):
    def patch(self):
        Trainer.run = lambda self, phase, working: working


class Steps(Patches):
    def patch(self):
        clients.training.private_steps.private_steps = lambda *args, **more: 0.0


class Torch(Patches):
    def patch(self):
        torch.nn.functional.cross_entropy = lambda *args, **more: args[0].sum(dim=1)


class Clipping(Patches):
    def patch(self):
        torch.Tensor.clamp = lambda self, *args, **more: self
