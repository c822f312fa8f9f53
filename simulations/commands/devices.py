"""``fedpers devices demo`` and ``fedpers devices units``: before devices are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors, show, signals

app = typer.Typer(
    help="Before devices are there.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command()
def demo(
    config: Annotated[Path, typer.Argument(help="The run's settings, a YAML file.")] = Path(
        "configs/devices.yaml"
    ),
    overrides: Overrides = None,
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


@app.command()
def units(
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("units"),
) -> None:
    """Write systemd units for a SuperLink and a SuperNode, and a container file."""
    with errors():
        from simulations.devices.units import write_units

        for path in write_units(out):
            typer.echo(str(path))
