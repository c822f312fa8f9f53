"""``fedpers predict``: what a client's models say of new examples."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Client, RunFolder, errors, find_plug_ins, signals


def predict(
    folder: RunFolder,
    client: Client,
    file: Annotated[
        Path, typer.Option("--input", help="x.npz with array x, a csv file, or images.")
    ],
) -> None:
    """Show what a client's personal, global and gated model say of new examples.

    A folder of runs stands for its newest run.
    """
    with errors(), signals():
        from rich.console import Console

        from simulations.experiments import predict as prediction

        find_plug_ins()
        run = prediction.FinishedRun(folder)
        x = prediction.read_inputs(file, run.config, run.data.given)
        whose = run.client(client)
        found = run.predict(whose, run.data.scaling_of(whose).apply(x))
        console = Console(width=None if sys.stdout.isatty() else 100)
        console.print(prediction.table(found))
        console.print(f"run: {run.folder}", soft_wrap=True, highlight=False)
