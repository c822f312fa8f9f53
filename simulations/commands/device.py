"""``fedpers device check``: whether a device can take part, found out on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors

app = typer.Typer(help="On a device.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def on_a_device() -> None:
    """On a device."""


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="The run's settings, a YAML file.")],
    data: Annotated[Path, typer.Option(help="The device's file: npz, csv or parquet.")],
    client: Annotated[str, typer.Option(help="The client's id.")] = "device",
    state: Annotated[Path | None, typer.Option(help="The device's folder.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The folder with client.key.")] = None,
    overrides: Overrides = None,
) -> None:
    """Check a device's data, model, key and budget before it joins. Nothing is sent."""
    with errors():
        from fedpers.config import load_config
        from simulations.devices.check import check_device

        for line in check_device(load_config(config, overrides or []), client, data, state, keys):
            typer.echo(line)
