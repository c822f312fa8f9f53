"""Names for the things a user can choose or bring: strategies, algorithms, sources, backbones."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from fedpers.errors import ConfigError
from fedpers.packages import check_packages

T = TypeVar("T")


class Registry(Generic[T]):
    """Things by name.

    A name is looked up among those registered by the modules of ``package`` (imported at the
    first look-up), then as a dotted path ``package.module:Thing``, then among the entry points
    of ``group`` that installed packages declare.

    Args:
        kind: what the things are, for messages: "strategy".
        key: the setting that holds the name: "strategy.name".
        package: the package whose modules register the built-in ones.
        group: the entry-point group of plug-ins, or None.
    """

    def __init__(self, kind: str, *, key: str, package: str, group: str | None = None) -> None:
        self.kind, self.key, self.package, self.group = kind, key, package, group
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a thing under ``name``; a name taken twice is an error."""

        def add(thing: T) -> T:
            taken = self._things.get(name)
            if taken is not None and _origin(taken) != _origin(thing):
                raise ValueError(f"{self.kind} {name!r} is registered twice: {taken!r}, {thing!r}")
            self._things[name] = thing
            return thing

        return add

    def names(self) -> list[str]:
        """The names known, plug-ins included, sorted."""
        self._import_package()
        return sorted({*self._things, *(point.name for point in self._plugins())})

    def name_of(self, thing: T) -> str:
        """The name ``thing`` is registered under, or its dotted path."""
        for name, registered in self._things.items():
            if registered is thing:
                return name
        return "{}:{}".format(*_origin(thing))

    def get(self, name: str) -> T:
        """The thing called ``name``.

        Raises:
            ConfigError: nothing has that name, what has it cannot be imported, or another package
                hides ours.
        """
        if ":" in name:
            module, _, attribute = name.partition(":")
            return self._imported(name, lambda: getattr(importlib.import_module(module), attribute))
        self._import_package()
        if name in self._things:
            return self._things[name]
        for point in self._plugins():
            if point.name == name:
                return self._imported(name, point.load)
        takes = f"one of {', '.join(self.names())}, or a dotted path package.module:Name"
        raise ConfigError(self.key, name, takes)

    def _import_package(self) -> None:
        check_packages()
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            # An app module builds its app when imported; it registers nothing.
            if not module.name.endswith("_app") and not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")

    def _imported(self, name: str, load: Callable[[], T]) -> T:
        try:
            return load()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            cure = "is its folder on PYTHONPATH, or its package installed?"
            takes = f"a path that can be imported ({error})"
            raise ConfigError(self.key, name, takes, cure) from None

    def _plugins(self) -> list:  # type: ignore[type-arg]
        return list(entry_points(group=self.group)) if self.group else []


def _origin(thing: object) -> tuple[str, str]:
    return getattr(thing, "__module__", ""), getattr(thing, "__qualname__", repr(thing))
