"""``fedpers devices``: a rehearsal, units, the gateway's settings, a check of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpers.errors import RunError
from simulations.commands.console import Overrides, errors, show, signals

app = typer.Typer(
    help="Devices, and the server that they speak to.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    config: Annotated[Path, typer.Argument(help="The run's settings, a YAML file.")] = Path(
        "configs/devices.yaml"
    ),
    overrides: Overrides = None,
) -> None:
    """Rehearse a deployment on this machine: a SuperLink behind its gateway, three devices with
    data, state, policy, keys and certificates of their own, and an outsider who tries to get in."""
    with errors(), signals():
        from fedpers.config import load_config
        from fedpers.evaluation.run_folder import new_run_id
        from simulations.devices.demo import demo as run_demo

        settings = load_config(config, overrides or [])
        folder = Path(settings.output).resolve() / new_run_id(settings)
        run_demo(settings, folder)
        show(folder)


@app.command()
def units(
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("units"),
    federation: Annotated[
        Path | None, typer.Option(help="The federation's file, if there is one already.")
    ] = None,
) -> None:
    """Write systemd units for a SuperLink, its gateway and a device; the gateway's settings, a
    federation's file, and a container file."""
    with errors():
        from simulations.devices.units import write_units

        for path in write_units(out, federation):
            typer.echo(str(path))


@app.command()
def gateway(
    federation: Annotated[Path, typer.Argument(help="The federation's file.")],
) -> None:
    """Show nginx's settings for a federation: who may speak, and for whom, is in its file."""
    with errors():
        from fedpers.federation import read_federation
        from simulations.devices.gateway import configuration

        typer.echo(configuration(read_federation(federation)), nl=False)


@app.command()
def check_server(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT")],
    ca: Annotated[Path, typer.Option(help="The authority that issued the server's certificate.")],
    certificate: Annotated[
        Path | None, typer.Option(help="A device's certificate, to look with its eyes too.")
    ] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
) -> None:
    """Find out from outside whether a server answers anything but the calls that a node needs: a
    line for each finding, and exit code 1 where there is one."""
    with errors():
        from simulations.devices.check_server import check_server

        own = (certificate, certificate_key) if certificate and certificate_key else None
        found = 0
        for line in check_server(address, ca, own):
            typer.echo(line)
            found += 1
        if found:
            raise RunError(f"{address}: {found} findings")
        typer.echo(f"{address}: closed but for a node's calls")
