"""``fedpers run``: one experiment, through Flower and Ray or in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import (
    Backend,
    Overrides,
    errors,
    find_plug_ins,
    how_to_go_on,
    show,
    signals,
)


def run(
    config: Annotated[Path, typer.Argument()],
    overrides: Overrides = None,
    backend: Annotated[
        Backend,
        typer.Option(help="ray: Flower's simulation. serial: one process, for debugging."),
    ] = Backend.RAY,
    resume: Annotated[
        Path | None,
        typer.Option(help="The folder of a run to go on with, under the same settings."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Flower's log too.")] = False,
) -> None:
    """Run the experiment described by CONFIG, a YAML file such as configs/digits.yaml.

    KEY=VALUE changes a setting for this run: rounds=3 strategy.name=fedavg training.lr=0.1
    """
    folder: Path | None = resume

    def go_on() -> str:
        more = [*(overrides or []), *(["--backend", "serial"] if backend is Backend.SERIAL else [])]
        return how_to_go_on(["fedpers", "run", str(config), *more], folder)

    with errors(go_on), signals():
        from fedpers.config import load_config

        find_plug_ins()
        settings = load_config(config, overrides or [])
        what = f"{settings.strategy.name} on {settings.data.called}, {settings.rounds} rounds"
        typer.echo(f"{config.name}: {what}; looking at the data and the settings")
        # Here, because they take seconds to import.
        from fedpers.evaluation.run_folder import new_run_id
        from simulations.backends.checks import absolute_paths, check, check_ray, check_serial
        from simulations.backends.launcher import launch
        from simulations.backends.serial import run_serial, shown

        settings = absolute_paths(settings)
        if backend is Backend.RAY:
            check_ray(settings)
        else:
            check_serial(settings)
        with shown(typer.echo):
            check(settings)
        folder = resume.resolve() if resume else Path(settings.output) / new_run_id(settings)
        if backend is Backend.SERIAL:
            run_serial(settings, folder, resume=resume is not None)
        else:
            launch(settings, folder, resume=resume is not None, verbose=verbose)
        show(folder)
