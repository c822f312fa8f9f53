"""What a prediction, an evaluation or a newcomer saw, sent in a later round."""

from dataclasses import replace

import torch

from clients.methods.fedavg import FedAvgFT
from clients.methods.perada import PerAda
from fedpers.parts import Part

SEEN = [0.0]


class Sends(FedAvgFT):
    def upload(self, working):
        sent = super().upload(working)
        return sent | {"head": sent["head"].like(sent["head"].vector + 0.01 * SEEN[0])}


class InTune(Sends):
    def tune(self, working, trainer, batches=None):
        SEEN[0] = float(trainer.examples.x.mean())
        return super().tune(working, trainer, batches)


class InRecall(Sends):
    def recall(self, working, trainer):
        SEEN[0] = float(trainer.examples.x.mean())
        return super().recall(working, trainer)


class InPredict(Sends):
    def predict(self, mode, working, x, view, split):
        SEEN[0] = float(x.mean())
        return super().predict(mode, working, x, view, split)


class InForward(Sends):
    def forward(self, model, x, *, training=False):
        if not training:
            SEEN[0] = float(x.mean())
        return super().forward(model, x, training=training)


class InNewcomer(Sends):
    """A newcomer's phases see its data in their loss."""

    def newcomer(self, steps):
        def loss(outputs, labels, reference):
            SEEN[0] = float(outputs.features.detach().mean())
            return outputs.logits.square().mean(dim=1)

        return [replace(phase, loss=loss) for phase in super().newcomer(steps)]


class InTuning(Sends):
    def tuning(self):
        def loss(outputs, labels, reference):
            SEEN[0] = float(outputs.features.detach().mean())
            return outputs.logits.square().mean(dim=1)

        return [replace(phase, loss=loss) for phase in super().tuning()]


class InDerived(PerAda):
    """What the model last held: the personal one of whoever was trained last."""

    def phases(self):
        return super().phases()[::-1]

    def derived(self, name, upload, view, public):
        with torch.no_grad():
            return Part.of({"logits": view.model(public).logits})
