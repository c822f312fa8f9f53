"""``fedpers operator``: who may ask devices, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors

app = typer.Typer(
    help="The operator of runs on devices.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command()
def new(
    out: Annotated[Path, typer.Option(help="The file for the secret key.")] = Path("operator.key"),
) -> None:
    """Make an operator's key, and show its public half, which owners put into their policies."""
    with errors():
        from fedpers.permit import new_operator

        typer.echo(new_operator(out))


@app.command()
def sign(
    config: Annotated[Path, typer.Argument(help="The run's settings, a YAML file.")],
    key: Annotated[Path, typer.Option(help="The operator's key.")] = Path("operator.key"),
    out: Annotated[Path, typer.Option(help="The file for the permit.")] = Path("permit.json"),
    hours: Annotated[float, typer.Option(help="For how long it holds.", min=0.01)] = 24.0,
    again: Annotated[
        Path | None, typer.Option(help="An earlier permit, whose run is to go on.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Sign a run's settings, but for the server's own paths; the run then has permit=FILE.

    A permit is for one run. To resume it with more rounds, or when it has expired, sign --again.
    """
    with errors():
        import time

        from fedpers.config import load_config
        from fedpers.permit import Permit, read_operator, read_permit
        from strategies.base import find_strategy

        settings = load_config(config, overrides or [])
        strategy = find_strategy(settings)
        run = read_permit(again).said()["run"] if again else None
        made = Permit.signed(
            read_operator(key),
            settings,
            strategy.client_side(),
            strategy.param_names(),
            time.time() + 3600 * hours,
            run,
        )
        made.write(out)
        typer.echo(f"{out}: for run {made.said()['run']}, {hours:g} hours from now")
