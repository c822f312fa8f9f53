"""``fedpers run``: one experiment, through Flower and Ray or in this process."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors, find_plug_ins, show, signals


class Backend(StrEnum):
    """Where the clients run."""

    RAY = "ray"
    SERIAL = "serial"


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
    with errors(), signals():
        # Here, because they take seconds to import.
        from fedpers.config import load_config
        from fedpers.evaluation.run_folder import new_run_id
        from simulations.backends.checks import absolute_paths, check, check_ray, check_serial
        from simulations.backends.launcher import launch
        from simulations.backends.serial import run_serial

        find_plug_ins()
        settings = absolute_paths(load_config(config, overrides or []))
        if backend is Backend.RAY:
            check_ray(settings)
        else:
            check_serial(settings)
        check(settings)
        folder = resume.resolve() if resume else Path(settings.output) / new_run_id(settings)
        if backend is Backend.SERIAL:
            run_serial(settings, folder, resume=resume is not None)
        else:
            launch(settings, folder, resume=resume is not None, verbose=verbose)
        show(folder)
