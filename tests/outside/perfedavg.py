"""Per-FedAvg, first order (Fallah et al. 2020, arXiv 2002.07948): a start from which one step on a
client's own examples goes far."""

from dataclasses import dataclass

from clients.base import LocalAlgorithm
from fedpers.parts import Parts
from fedpers.phases import Phase
from strategies.base import PersonalizedStrategy


@dataclass
class Step:
    """alpha, the rate of the step that personalises."""

    alpha: float = 0.1


class PerFedAvg(PersonalizedStrategy):
    """The mean of the clients' starts."""

    algorithm = "perfedavg:Start"


class Start(LocalAlgorithm):
    """w <- w - beta grad f(w - alpha grad f(w; D); D'), without the second derivative."""

    Params = Step
    keeps = ("body", "head")
    scored = "after a step on the received model"

    def receive(self, broadcast, personal, context):
        return super().receive(broadcast, Parts(), context)  # the step starts from what came

    def phases(self):
        return [self.shared_phase()]

    def train(self, working, trainer):
        (phase,) = self.phases()
        batches = list(trainer.batches(phase))
        for first, second in zip(batches[::2], batches[1::2], strict=False):
            gradient, _ = trainer.gradient(phase, working, first)
            near = self.moved(working, gradient, self.params.alpha)
            gradient, trainer.losses[phase.name] = trainer.gradient(phase, near, second)
            working = self.moved(working, gradient, self.config.training.lr)
        return working

    def moved(self, working, gradient, rate):
        steps = {name: rate * part.vector for name, part in gradient.items()}
        return working | {n: working[n].like(working[n].vector - step) for n, step in steps.items()}

    def tuning(self):
        return [
            Phase(
                name="one step",
                model=self.branch(self.slots),
                trains=self.slots,
                released=False,
                epochs=1,
                steps=1,
                lr=self.params.alpha,
                decays=False,
            )
        ]

    def keep(self, working):
        return Parts()
