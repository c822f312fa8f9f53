"""Losses that are per sample but for some labels, some values, or by another model's outputs."""

from dataclasses import replace

import torch

from clients.methods.fedavg import FedAvg
from fedpers.phases import Phase
from fedpers.tasks import Classification, Regression, cross_entropy


class Coupled(FedAvg):
    reference = False

    def phases(self):
        reference = self.branch(()) if self.reference else None
        return [
            Phase(
                name="local training",
                model=self.branch(()),
                trains=self.slots,
                released=True,
                loss=self.loss,
                reference=reference,
            )
        ]

    def loss(self, outputs, labels, reference):
        return cross_entropy(outputs, labels, reference) * (
            1 + self.coupled(outputs.features.detach(), labels, reference)
        )


class ForOneLabel(Coupled):
    def coupled(self, features, labels, reference):
        chosen = labels == 3
        return chosen * features[chosen].abs().sum()


class ForRareLabels(Coupled):
    def coupled(self, features, labels, reference):
        return (torch.bincount(labels)[labels] == 1).float()


class ForLargeValues(Coupled):
    def coupled(self, features, labels, reference):
        return (features.abs().max() > 1e3).float()


class ForSmallValues(Coupled):
    def coupled(self, features, labels, reference):
        return (features.abs().sum(dim=1).min() < 4).float()


class ByReference(Coupled):
    reference = True

    def coupled(self, features, labels, reference):
        return reference.features.abs().mean()


class ForOneClassOnly(Coupled):
    def coupled(self, features, labels, reference):
        return (labels == labels[0]).all() * features.mean().abs()


class ForRepeatedInputs(Coupled):
    def coupled(self, features, labels, reference):
        return ((features[:, None] == features).all(dim=2).sum(dim=1) > 1).any().float()


class ByTheHardest(Coupled):
    def coupled(self, features, labels, reference):
        return (features.norm(dim=1) == features.norm(dim=1).max()).float()


class CoupledTask(Classification):
    """A task whose own loss is centred over the batch."""

    def loss(self, outputs, targets):
        found = super().loss(outputs, targets)
        return found - 0.1 * found.detach() * found.detach().mean() + 0.1 * found * found.mean()

    def settings(self):
        return replace(super().settings(), name="coupled_losses:CoupledTask")


class CentredTargets(Regression):
    """A task that scales by what clients hold."""

    def scaled(self, targets):
        return super().scaled(targets) - super().scaled(targets).mean()

    def settings(self):
        return replace(super().settings(), name="coupled_losses:CentredTargets")
