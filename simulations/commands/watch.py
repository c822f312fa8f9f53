"""``fedpers watch``: how a run stands."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.commands.console import RunFolder, errors, signals


def watch(
    folder: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands, and end.")] = False,
) -> None:
    """Follow a run: rounds, accuracy over clients, epsilon, time left; ends with its report."""
    with errors(), signals():
        from simulations.experiments import watch as watching

        watching.watch(folder, once=once)
