"""``fedpers export``: a client's model as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Client, RunFolder, errors, find_plug_ins, signals


def export(
    folder: RunFolder,
    client: Client,
    out: Annotated[Path, typer.Option(help="The folder to write, not there yet.")],
) -> None:
    """Write a client's personal model as a folder for PEFT and transformers, with a manifest."""
    with errors(), signals():
        from simulations.experiments import predict as prediction

        find_plug_ins()
        run = prediction.FinishedRun(folder)
        run.export(run.client(client), out)
        typer.echo(f"files: {out.resolve()}")
