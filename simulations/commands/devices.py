"""The commands for devices: ``fedpers device check``, ``fedpers devices demo``, ``... units``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import errors, show, signals

app = typer.Typer(help="On a device.", no_args_is_help=True, pretty_exceptions_enable=False)
rehearsal = typer.Typer(
    help="Before devices are there.", no_args_is_help=True, pretty_exceptions_enable=False
)

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]


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
    overrides: Settings = None,
) -> None:
    """Check a device's data, model, key and budget before it joins. Nothing is sent."""
    with errors():
        from fedpers.config import load_config
        from simulations.devices.check import check_device

        for line in check_device(load_config(config, overrides or []), client, data, state, keys):
            typer.echo(line)


@rehearsal.command()
def demo(
    config: Annotated[Path, typer.Argument(help="The run's settings, a YAML file.")] = Path(
        "configs/devices.yaml"
    ),
    overrides: Settings = None,
) -> None:
    """Rehearse a deployment on this machine: TLS, node keys, three SuperNodes, each with its own
    data, state and encryption key."""
    with errors(), signals():
        from fedpers.config import load_config
        from fedpers.evaluation.run_folder import new_run_id
        from simulations.devices.rehearsal import demo as run_demo

        settings = load_config(config, overrides or [])
        folder = Path(settings.output).resolve() / new_run_id(settings)
        run_demo(settings, folder)
        show(folder)


@rehearsal.command()
def units(
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("units"),
) -> None:
    """Write systemd units for a SuperLink and a SuperNode, and a container file."""
    with errors():
        from simulations.devices.units import write_units

        for path in write_units(out):
            typer.echo(str(path))
