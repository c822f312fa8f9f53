"""Training of its own, declared as accounted, that puts data into what is sent."""

from dataclasses import replace

import torch

from clients.methods.fedavg import FedAvg


class Own(FedAvg):
    accounted = True


class Concludes(Own):
    def conclude(self, working, trainer):
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-4 * trainer.examples.x.mean())}


class Prepares(Own):
    def prepare(self, working, trainer):
        body = working["body"]
        return working | {"body": body.like(body.vector * (1 + 1e-3 * trainer.examples.x.mean()))}


class ReleasedGradient(Own):
    def conclude(self, working, trainer):
        trainer.gradient(self.phases()[0], working, torch.arange(len(trainer.examples)))
        return working


class Gradient(Own):
    """Of a phase that is said not to leave."""

    def conclude(self, working, trainer):
        phase = replace(self.phases()[0], released=False)
        gradient, _ = trainer.gradient(phase, working, torch.arange(len(trainer.examples)))
        head = working["head"]
        return working | {"head": head.like(head.vector - gradient["head"].vector)}


class Loss(Own):
    def conclude(self, working, trainer):
        loss = sum(trainer.losses.values())
        return working | {"head": working["head"].like(working["head"].vector * (1 + 1e-6 * loss))}


class LastBits(Own):
    """The label of the first example, in the last bit of one value."""

    def conclude(self, working, trainer):
        vector = working["head"].vector.clone()
        bits = vector.view(torch.int32)
        bits[0] = bits[0] // 2 * 2 + int(trainer.examples.y[0]) % 2
        return working | {"head": working["head"].like(vector)}


class Accuracy(Own):
    def conclude(self, working, trainer):
        logits = trainer.outputs(self.branch(()), working, trainer.examples.x).logits
        right = (logits.argmax(dim=1) == trainer.examples.y.to(logits.device)).float().mean()
        return working | {"head": working["head"].like(working["head"].vector + 1e-3 * right)}


class Seeds(Own):
    """The data decide a mask that looks random."""

    def conclude(self, working, trainer):
        seed = int(trainer.examples.x.double().sum() * 1e6) % 2**31
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(working["head"].layout.size, generator=generator)
        return working | {"head": working["head"].like(working["head"].vector + 1e-3 * noise)}


class Anchored(Own):
    """What is sent is drawn towards what was trained without noise on the side."""

    def prepare(self, working, trainer):

        (phase,) = self.phases()
        raw = trainer.run(replace(phase, name="side", released=False), working)
        return working | {"received.head": raw["head"]}

    def conclude(self, working, trainer):
        head, raw = working["head"], working["received.head"]
        return working | {"head": head.like(0.9 * head.vector + 0.1 * raw.vector)}


class TellsHowMany(Own):
    """Neither a value nor a label: how many examples there are, where that is protected."""

    def conclude(self, working, trainer):
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-4 * len(trainer.examples))}
