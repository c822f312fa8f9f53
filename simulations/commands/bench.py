"""``fedpers bench``: what is done here, timed beside the usual way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import errors, signals


def bench(
    rows: Annotated[
        str | None,
        typer.Option(help="Names of rows, separated by commas; if not given all that are quick."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each way is timed.")] = 9,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
) -> None:
    """Time what is done here beside the usual way, by turns.

    The rows task-flower, tiny-flower and devices are whole runs, and are measured if named only.
    """
    with errors(), signals():
        from simulations.bench import table as measured

        found = measured.bench(rows.split(",") if rows else [], repeats, typer.echo)
        if out is not None:
            measured.save(found, out)
