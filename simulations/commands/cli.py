"""The command line, assembled: a file a command, beside this one.

Exit codes: 0 the run completed, 1 it did not, 2 a mistake that the user can mend, 130 stopped by
Ctrl-C or SIGTERM. What takes seconds to import is imported when a command runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fedpers import __version__
from fedpers.packages import check_packages
from simulations.commands import device, devices, keys, operator
from simulations.commands.attack import attack
from simulations.commands.audit import audit
from simulations.commands.bench import bench
from simulations.commands.check import check
from simulations.commands.compare import compare
from simulations.commands.console import errors
from simulations.commands.export import export
from simulations.commands.generate import generate
from simulations.commands.map import map as map_command
from simulations.commands.new import new
from simulations.commands.predict import predict
from simulations.commands.report import report
from simulations.commands.run import run
from simulations.commands.watch import watch

app = typer.Typer(
    name="fedpers",
    help="Personalised federated learning on Flower.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Personalised federated learning on Flower."""
    if version:
        typer.echo(f"fedpers {__version__}")
    with errors():
        check_packages()


ON_A_RUN = (report, predict, generate, export, watch)
for command in (new, check, run, compare, attack, audit, bench, *ON_A_RUN):
    app.command()(command)
app.command()(map_command)
app.add_typer(device.app, name="device")
app.add_typer(keys.app, name="keys")
app.add_typer(devices.app, name="devices")
app.add_typer(operator.app, name="operator")


def main() -> None:
    """The console script ``fedpers``."""
    app()


if __name__ == "__main__":
    main()
