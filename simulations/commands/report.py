"""``fedpers report``: the page and the table of a finished run, made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import errors, show


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
) -> None:
    """Write report.html of a finished RUN anew from its files, and print its table."""
    with errors():
        from fedpers.evaluation import write_html

        write_html(folder)
        show(folder)
