"""Numbers of a method's own, sums, steps and gradients that tell more than is paid for."""

from dataclasses import replace

import torch

from clients.methods.fedavg import FedAvg
from fedpers.parts import Part
from fedpers.stats import Stat

SEEN = [0.0]


class Own(FedAvg):
    accounted = True
    reports = (Stat("value", -1.0, 1.0),)

    def report(self, working, trainer):
        return {"value": self.values(trainer.examples.x.flatten(1).mean(dim=1))}


class Centred(Own):
    """What an example adds hangs on all others."""

    def values(self, means):
        return (means - means.mean()).tanh()


class Ranked(Own):
    def values(self, means):
        return means.argsort().argsort().float() / len(means)


class OneNumber(Own):
    def values(self, means):
        return float(means.mean())


class WhenPolled(FedAvg):
    polls = Own.reports

    def poll(self, working, trainer):
        means = trainer.examples.x.flatten(1).mean(dim=1)
        return {"value": (means - means.mean()).tanh()}


class InTheReport(Own):
    """It remembers, while it reports, what it sends in the next round."""

    def values(self, means):
        SEEN[0] = float(means.mean())
        return means.tanh()

    def upload(self, working):
        sent = super().upload(working)
        return sent | {"head": sent["head"].like(sent["head"].vector + 0.01 * SEEN[0])}


class Summed(FedAvg):
    """Sums of rows that look across the examples."""

    accounted = True
    releases_sums = 1

    def conclude(self, working, trainer):
        x = trainer.examples.x.flatten(1)[:, :3]
        total, _ = trainer.release_sums(x - x.mean(dim=0), 1.0)
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-3 * total.sum())}


class SummedPlainly(Summed):
    releases_sums = 0

    def conclude(self, working, trainer):
        x = trainer.examples.x.flatten(1)[:, :3]
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-3 * x.clamp(-1, 1).sum())}


class Steps(FedAvg):
    """Steps of a phase that it says is not released, sent all the same."""

    accounted = True

    def conclude(self, working, trainer):
        (phase,) = self.phases()
        aside = replace(phase, name="aside", released=False)
        return trainer.step(aside, working, torch.arange(len(trainer.examples)))


class Differentiates(FedAvg):
    accounted = True

    def conclude(self, working, trainer):
        (phase,) = self.phases()
        f = trainer.objective(replace(phase, released=False), working)
        vectors = {s: working[s].vector.clone().requires_grad_(True) for s in phase.trains}
        loss = f(vectors, torch.arange(len(trainer.examples)))
        (slope,) = torch.autograd.grad(loss, vectors["head"])
        return working | {"head": working["head"].like(working["head"].vector - slope)}


class Validates(FedAvg):
    """What is sent is chosen by the validation examples."""

    accounted = True

    def conclude(self, working, trainer):
        head = working["head"]
        return working | {"head": head.like(head.vector + trainer.validation.x.mean())}


class OneMore(FedAvg):
    """A gradient more than it declares."""

    accounted = True

    def phases(self):
        return [replace(self.shared_phase(), gradients=2)]

    def train(self, working, trainer):
        (phase,) = self.phases()
        for batch in [*trainer.batches(phase), torch.arange(0)]:
            gradient = trainer.private_gradient(phase, working, batch)
            head = working["head"]
            working = working | {"head": head.like(head.vector - 0.1 * gradient["head"].vector)}
        return working


class ByNumber(FedAvg):
    """It looks at whose round it is, which is nobody's secret, and at its data."""

    def receive(self, broadcast, personal, context):
        working = super().receive(broadcast, personal, context)
        if context.server_round < 3:
            return working
        return working | {"personal.late": working["head"]}

    def train(self, working, trainer):
        working = super().train(working, trainer)
        if "personal.late" in working:
            head = working["head"]
            return working | {"head": head.like(head.vector + trainer.examples.x.mean())}
        return working

    accounted = True


class Sound(FedAvg):
    """All of it as it should be."""

    accounted = True
    releases_sums = 2
    reports = (Stat("value", -1.0, 1.0), Stat("loss", 0.0, 5.0))
    polls = (Stat("value", -1.0, 1.0),)

    def phases(self):
        shared = self.shared_phase()
        return [shared, replace(shared, name="singly", gradients=4)]

    def train(self, working, trainer):
        shared, singly = self.phases()
        working = trainer.run(shared, working)
        for batch in trainer.batches(singly):
            gradient = trainer.private_gradient(singly, working, batch)
            moved = {s: working[s].vector - 0.1 * g.vector for s, g in gradient.items()}
            working = working | {s: working[s].like(vector) for s, vector in moved.items()}
        x = trainer.examples.x.flatten(1)[:, :3]
        total, count = trainer.release_sums(x, 1.0)
        more, _ = trainer.release_sums(x.square(), 2.0)
        head = working["head"]
        return working | {"head": head.like(head.vector + 1e-3 * (total + more).sum() / count)}

    def report(self, working, trainer):
        outputs = trainer.outputs(self.branch(()), working, trainer.examples.x)
        loss = self.task.loss(outputs, trainer.examples.y.to(outputs.scores.device))
        return {"value": trainer.examples.x.flatten(1).mean(dim=1).tanh(), "loss": loss}

    def poll(self, working, trainer):
        return {"value": trainer.examples.x.flatten(1).mean(dim=1).tanh()}


class OneOfABank(FedAvg):
    """Which copy it trains and names hangs on its data."""

    accounted = True

    def banks(self):
        return dict.fromkeys(self.sends, 2)

    def upload(self, working):
        k = int(working["personal.chosen"].vector)
        return type(working)({f"{slot}@{k}": working[slot] for slot in self.slots})

    def prepare(self, working, trainer):
        best = float(trainer.examples.y[0] % 2)
        chosen = {slot: working[f"{slot}@{int(best)}"] for slot in self.slots}
        part = Part.of({"": torch.tensor([best])})
        return working | chosen | {"personal.chosen": part}

    def receive(self, broadcast, personal, context):
        first = {"personal.chosen": Part.of({"": torch.zeros(1)})}
        return super().receive(broadcast, personal, context) | first


class AsItWasTold(OneOfABank):
    """By what the server said, which is nobody's secret."""

    def receive(self, broadcast, personal, context):
        k = context.said.get("cluster", context.server_round % 2)
        chosen = {"personal.chosen": Part.of({"": torch.tensor([float(k)])})}
        working = super().receive(broadcast, personal, context)
        return working | {slot: working[f"{slot}@{k}"] for slot in self.slots} | chosen

    def prepare(self, working, trainer):
        return working
