"""What a private run asks of a method before it begins."""

from __future__ import annotations

from clients.base import LocalAlgorithm
from fedpers.errors import ConfigError
from fedpers.privacy.plan import check_plan


def check_told(name: str, algorithm: LocalAlgorithm) -> None:
    """Refuse a method that would tell the server, in a private run, what no noise covers.

    Raises:
        ConfigError: naming what it is, and the cure.
    """
    if algorithm.messages:
        raise ConfigError(
            "strategy.name",
            name,
            "with privacy a method without messages of its own, as no noise covers what "
            f"{algorithm.messages[0]!r} answers",
            "tell it in reports or polls, which are noised and charged",
        )
    told = [stat.name for stat in (*algorithm.reports, *algorithm.polls)]
    told += algorithm.pooled()
    if algorithm.config.privacy.by_client and told:
        takes = "with privacy.unit=client a method that tells nothing beside its updates, and "
        raise ConfigError("strategy.name", name, f"{takes}this one tells {told[0]}")


def check_private(name: str, algorithm: LocalAlgorithm) -> None:
    """Refuse a method that would release what its DP training does not cover, and freeze it.

    Raises:
        ConfigError: naming what leaks, and the cure.
        ClientError: it changes its own state.
    """
    check_told(name, algorithm)
    for hook in ("__setattr__", "__delattr__", "freeze"):
        if getattr(type(algorithm), hook) is not getattr(LocalAlgorithm, hook):
            takes = f"with privacy a method without a {hook} of its own: it may hold no state"
            raise ConfigError("strategy.name", name, takes)
    for hook in ("train", "prepare", "conclude"):
        definer = next(c for c in type(algorithm).__mro__ if hook in c.__dict__)
        if not definer.__dict__.get("accounted", False):
            raise ConfigError(
                "strategy.name",
                name,
                f"with privacy a method whose data are read in its phases alone, and "
                f"{definer.__name__}.{hook} reads more",
                "set accounted = True in that class if what it reads influences nothing that "
                "leaves",
            )
    if (precision := algorithm.config.training.precision) != "float32":
        takes = "float32 with privacy: what is clipped to a bound must be computed as finely"
        raise ConfigError("training.precision", precision, takes)
    algorithm.freeze()
    check_plan(name, algorithm, algorithm.declared, algorithm.config.rounds)
