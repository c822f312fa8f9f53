"""That the packages imported under this project's names are this project's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fedpers.errors import ConfigError

HOME = Path(__file__).parents[1]
NAMES = ("fedpers", "strategies", "clients", "simulations")


def check_packages() -> None:
    """Refuse a path on which somebody else's folder or module hides one of the four packages: what
    is in it would be taken for methods, and ours be unknown.

    Raises:
        ConfigError: naming it.
    """
    for name in NAMES:
        spec = find_spec(name)
        if spec is None:  # the core can be installed alone
            continue
        # A module is a file, a package a folder.
        found = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
        if found.resolve() != (HOME / name).resolve():
            takes = f"nothing else called {name!r} before fedpers' own, which it hides"
            cure = f"rename it, or take {found.parent} off PYTHONPATH"
            raise ConfigError("import path", str(found), takes, cure)
