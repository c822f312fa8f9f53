"""Per-FedAvg, first order (Fallah et al. 2020, arXiv 2002.07948): a start from which one step on a
client's own examples goes far."""

from dataclasses import dataclass, replace
from itertools import islice

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
    accounted = True  # both gradients of a step are noised and charged in a private run
    scored = "after a step on the received model"

    def receive(self, broadcast, personal, context):
        return super().receive(broadcast, Parts(), context)  # the step starts from what came

    def phases(self):
        return [replace(self.shared_phase(), gradients=2 * self.config.privacy.steps)]

    def train(self, working, trainer):
        (phase,) = self.phases()
        batches = trainer.batches(phase)
        for first, second in zip(batches, batches, strict=False):
            gradient = trainer.private_gradient(phase, working, first)
            near = self.moved(working, gradient, self.params.alpha)
            gradient = trainer.private_gradient(phase, near, second)
            working = self.moved(working, gradient, self.config.training.lr)
        return working

    def moved(self, working, gradient, rate, prefix=""):
        steps = {f"{prefix}{slot}": rate * part.vector for slot, part in gradient.items()}
        return working | {n: working[n].like(working[n].vector - step) for n, step in steps.items()}

    def tune(self, working, trainer, batches=None):
        model = self.branch(self.slots)
        phase = Phase(name="adapting", model=model, trains=self.slots, released=False)
        for batch in islice(trainer.batches(phase), 1 if batches is None else batches):
            gradient, _ = trainer.gradient(phase, working, batch)
            working = self.moved(working, gradient, self.params.alpha, "personal.")
        return working

    def keep(self, working):
        return Parts()
