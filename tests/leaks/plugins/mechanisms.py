"""Mechanisms that do not do what they are charged for."""

import torch

from fedpers.privacy import Gaussian

BEFORE = []


class Whisper(Gaussian):
    """Half the noise."""

    def noised(self, total, bound, source):
        return source.noised(total, self.sigma * bound / 2)


class Silent(Gaussian):
    """The sum itself."""

    def noised(self, total, bound, source):
        return total


class OwnNoise(Gaussian):
    """The noise, added where nobody rounds or listens."""

    def noised(self, total, bound, source):
        return total + self.sigma * bound * source.normal(total.numel()).view_as(total).float()


class Guessable(Gaussian):
    """Noise of torch's generator."""

    def noised(self, total, bound, source):
        return source.noised(total, self.sigma * bound, torch.randn(total.shape).double())


class Everybody(Gaussian):
    """All examples at each step, at the price of a sample."""

    def sample(self, examples, source):
        return torch.arange(examples)


class Remembering(Gaussian):
    """The sum before this one, too."""

    def noised(self, total, bound, source):
        BEFORE.append(total)
        return source.noised(total + 0.5 * sum(BEFORE), self.sigma * bound)
