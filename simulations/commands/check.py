"""``fedpers check``: what a run would have to do with, and what it can show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors, find_plug_ins, signals


def check(
    config: Annotated[Path, typer.Argument(help="A YAML file, as configs/digits.yaml.")],
    overrides: Overrides = None,
) -> None:
    """Look at the data of CONFIG before a run: sizes, classes, scale, and what can be shown."""
    with errors(), signals():
        from fedpers.config import load_config
        from simulations.backends.checks import absolute_paths
        from simulations.experiments.check import examine

        find_plug_ins()
        for line in examine(absolute_paths(load_config(config, overrides or []))):
            if line:
                typer.echo(line)
