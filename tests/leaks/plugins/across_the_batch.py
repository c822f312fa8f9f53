"""Forward passes that look across the batch."""

import torch
import torch.nn.functional as F

from clients.methods.fedavg import FedAvg
from fedpers.models import Outputs
from fedpers.models.backbones import Mlp, Stage


class Forward(FedAvg):
    def forward(self, model, x, *, training=False):
        features = model.features(x)
        if training:
            features = self.across(features)
        return Outputs(features, model.head(features))


class Centred(Forward):
    def across(self, features):
        return features - features.mean(dim=0)


class BatchNorm(Forward):
    def across(self, features):
        return F.batch_norm(features, None, None, training=True)


class Attends(Forward):
    def across(self, features):
        return (features @ features.T / 10).softmax(dim=1) @ features


class Weakly(Forward):
    def across(self, features):
        return features + 1e-3 * features.mean(dim=0)


class ByTheLargest(Forward):
    def across(self, features):
        return features / features.detach().abs().max().clamp_min(30.0)


class Outranked(Forward):
    def across(self, features):
        first = features.detach()[:, 0]
        return features * (first < first.max())[:, None].float().clamp_min(0.5)


class LargeOnesOnly(Forward):
    def across(self, features):
        large = features.detach().norm(dim=1) > 1e3
        return features + large.any() * 0.1


class InLargeBatches(Forward):
    def across(self, features):
        return features - features.mean(dim=0) if len(features) > 32 else features


class Flattened(Mlp):
    """Places of all examples go through a trained layer as if each were an example: so each of
    them is clipped, not each example."""

    def stages(self):
        first, second = super().stages()

        def run(x):
            places = torch.stack([x, 0.5 * x], dim=1)
            return second.run(places.flatten(0, 1)).unflatten(0, (-1, 2)).mean(dim=1)

        return first, second._replace(run=run)


class CentredInputs(Mlp):
    def stages(self):
        first, second = super().stages()
        return Stage(first.reads, lambda x: first.run(x - x.mean(dim=0))), second


class CentredBelow(Mlp):
    """In a layer that is frozen, and cached."""

    def stages(self):
        first, second = super().stages()
        return Stage(first.reads, lambda x: first.run(x) - first.run(x).mean(dim=0)), second


class CentredInTraining(Mlp):
    def forward(self, x):
        x = F.relu(self.hidden1(x.flatten(1)))
        if torch.is_grad_enabled():
            x = x - x.mean(dim=0)
        return F.relu(self.hidden2(x))

    def stages(self):
        return ()


class Neighbouring(Mlp):
    """Each example sees the one before it."""

    def stages(self):
        first, second = super().stages()
        return first, Stage(second.reads, lambda x: second.run(x + 0.1 * torch.roll(x, 1, 0)))
