"""``fedpers generate``: what a client's language models say after a prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from simulations.commands.console import Client, RunFolder, errors, find_plug_ins, signals


def generate(
    folder: RunFolder,
    client: Client,
    prompt: Annotated[str, typer.Option(help="The beginning of a text.")],
    tokens: Annotated[int, typer.Option(min=1, help="At most so many are said.")] = 40,
) -> None:
    """Continue a text by the model before training, the global and a client's personal one.

    A folder of runs stands for its newest run.
    """
    with errors(), signals():
        from rich.console import Console

        from simulations.experiments import generate as generation
        from simulations.experiments.predict import FinishedRun

        find_plug_ins()
        run = FinishedRun(folder)
        whose = run.client(client)
        found = generation.continuations(run, whose, prompt, tokens)
        console = Console(width=None if sys.stdout.isatty() else 100)
        console.print(generation.table(whose, prompt, found))
        console.print(f"run: {run.folder}", soft_wrap=True, highlight=False)
