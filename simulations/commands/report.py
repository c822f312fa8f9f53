"""``fedpers report``: the page and the table of a finished run, made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import errors, show


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
) -> None:
    """Write report.html of a RUN anew from its files, and print its table; of one that was stopped,
    as far as it came."""
    with errors():
        from fedpers.evaluation import write_html
        from simulations.experiments.stopped import report_so_far

        found = None if (folder / "report.json").exists() else report_so_far(folder)
        write_html(folder, found)
        show(folder, found)
