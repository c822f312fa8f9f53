"""A mechanism: how a sum over examples is sampled and noised, and what one step of that costs.

Training, counts, the noised sum of a population, ledgers and the accounting ask a mechanism; none
of them knows which one it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from fedpers.errors import ConfigError
from fedpers.privacy.gdp import Floats
from fedpers.privacy.noise import Source
from fedpers.registry import Registry


class Profile(NamedTuple):
    """What one step costs in one direction: for an example that is in the first of two data sets
    alone, or in the second alone.

    Attributes:
        delta: from epsilons [n], any real numbers, in order, to the least delta at each, or to that
            of another mechanism that costs no less.
        least, most: between which the privacy loss lies. What delta is left at ``most`` is taken
            for certain harm, so that a loss without an end may be cut where that is little.
    """

    delta: Callable[[Floats], Floats]
    least: float
    most: float


@dataclass(frozen=True)
class Mechanism(ABC):
    """One step: a sum over a sample of the examples, released with noise.

    An example adds at most ``bound`` to the sum, in Euclidean norm. What a step costs hangs neither
    on the sum nor on how many values it has, and is no less at a smaller sigma or a higher rate.

    A mechanism is a value: equal ones are one entry of a ledger, where all of its fields are
    written. Others than these two are numbers or strings and have defaults.

    Attributes:
        sigma: the noise multiplier, >= 0: at a bound of 1 the noise's standard deviation, of each
            value of the sum.
        rate: with which probability each example is in the sample, by itself; in (0, 1].
    """

    sigma: float
    rate: float

    divisible: ClassVar[bool] = False
    """Whether clients can each add a share of the noise, see ``noised_share``."""

    def sample(self, examples: int, source: Source) -> Tensor:
        """The indices, int64 [drawn] on the CPU, of the examples that one step sums over."""
        return source.sample(examples, self.rate)

    @abstractmethod
    def noised(self, total: Tensor, bound: float, source: Source) -> Tensor:
        """What may be released of a sum.

        Args:
            total: [...], on any device; the result is on the same, in the same type.
            bound: on what an example adds to it, > 0.
            source: of all that is random, by ``source.noised``: it rounds, and the leak test
                listens there.
        """

    def noised_share(self, total: Tensor, bound: float, source: Source, shares: int) -> Tensor:
        """The same with one of so many shares of the noise, which add up to all of it. Asked only
        of those that are ``divisible``."""
        raise NotImplementedError(f"{type(self).__name__}: its noise cannot be divided")

    @abstractmethod
    def profiles(self) -> tuple[Profile, ...]:
        """What one step costs where an example is removed, and where one is added; a single one if
        that is the same."""

    @property
    def exact(self) -> bool:
        """Whether steps are Gaussian DP with ``mu_squared`` and no less, so that they are composed
        by that alone. It then falls with 1 / sigma^2."""
        return False

    def mu_squared(self, steps: int) -> float:
        """The mu^2 of Gaussian DP that so many steps keep to; infinite where none is known."""
        return math.inf

    @property
    def variance(self) -> float:
        """Of one step's privacy loss, about: by it a grid of losses is chosen, and a search is
        begun."""
        return max((most - least) ** 2 for _, least, most in self.profiles()) / 4


MECHANISMS: Registry[type[Mechanism]] = Registry(
    "mechanism",
    key="privacy.mechanism",
    package="fedpers.privacy.mechanisms",
    group="fedpers.mechanisms",
)


def mechanism_named(name: str) -> type[Mechanism]:
    """The mechanism of that name, registered or ``package.module:Class``.

    Raises:
        ConfigError: there is none, or it cannot be made of sigma and rate.
    """
    found = MECHANISMS.get(name)
    if not (isinstance(found, type) and issubclass(found, Mechanism)):
        raise ConfigError(MECHANISMS.key, name, "a subclass of fedpers.privacy.Mechanism")
    try:
        found(1.0, 1.0)
    except TypeError as error:
        takes = f"a mechanism that is made of sigma and rate alone ({error})"
        raise ConfigError(MECHANISMS.key, name, takes) from None
    return found


class Release(NamedTuple):
    """So many steps of a mechanism."""

    mechanism: Mechanism
    steps: int

    def to_json(self) -> dict[str, Any]:
        """A row of a ledger; ``from_json`` reads it back."""
        kind = MECHANISMS.name_of(type(self.mechanism))
        return {"kind": kind, **asdict(self.mechanism), "steps": self.steps}

    @classmethod
    def from_json(cls, row: Any) -> Release:
        """A row of a ledger, of this version or an earlier one, which knew one mechanism.

        Raises:
            ConfigError: nothing here knows its kind.
            ValueError, KeyError, TypeError: it is no row, or an impossible one.
        """
        if isinstance(row, list):
            row = dict(zip(("sigma", "rate", "steps"), row, strict=True), kind="gaussian")
        fields = dict(row)
        kind, steps = fields.pop("kind"), fields.pop("steps")
        mechanism = mechanism_named(kind)(**fields)
        # Written so that NaN is refused, too.
        possible = mechanism.sigma > 0 and 0 < mechanism.rate <= 1
        if not (possible and type(steps) is int and steps >= 0):
            raise ValueError(f"impossible entry {row}")
        return cls(mechanism, steps)
