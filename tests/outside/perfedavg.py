"""Per-FedAvg, first order: a model that a step on a client's own examples makes its own (Fallah et
al., NeurIPS 2020, arXiv 2002.07948)."""

from dataclasses import dataclass, replace

from clients.base import LocalAlgorithm
from fedpers.parts import Parts
from fedpers.phases import Phase
from strategies.base import PersonalizedStrategy


@dataclass
class Rates:
    """Of the inner step, which personalises, and of the outer one; both > 0."""

    alpha: float = 0.1
    beta: float = 0.3


class PerFedAvg(PersonalizedStrategy):
    """The mean of the clients' meta-models."""

    algorithm = "perfedavg:Meta"


class Meta(LocalAlgorithm):
    """w <- w - beta grad f(w - alpha grad f(w; D); D'), without the second derivative."""

    Params = Rates
    accounted = True  # both gradients of a step are noised and charged in a private run
    scored = "after a step on the received model"

    def phases(self):
        return [replace(self.shared_phase(), gradients=2 * self.config.privacy.steps)]

    def train(self, working, trainer):
        (phase,) = self.phases()
        batches = trainer.batches(phase)
        for first, second in zip(batches, batches, strict=False):
            gradient = trainer.private_gradient(phase, working, first)
            near = moved(working, gradient, self.params.alpha)
            gradient = trainer.private_gradient(phase, near, second)
            working = moved(working, gradient, self.params.beta)
        return working

    def newcomer(self, steps):
        return [
            Phase(
                name="adapting",
                model=self.branch(()),
                trains=self.slots,
                released=False,
                lr=self.params.alpha,
                steps=steps,
                epochs=steps,
                decays=False,
            )
        ]

    def tuning(self):
        return self.newcomer(1)


def moved(working, gradient, rate):
    """A step down a gradient."""
    steps = {slot: rate * part.vector for slot, part in gradient.items()}
    return working | Parts({s: working[s].like(working[s].vector - d) for s, d in steps.items()})
