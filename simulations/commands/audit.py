"""``fedpers audit``: attacks on the privacy of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpers.errors import RunError
from simulations.commands.console import Overrides, errors, find_plug_ins, signals


def audit(
    config: Annotated[Path, typer.Argument(help="A YAML file, or the folder of a run.")],
    overrides: Overrides = None,
    canaries: Annotated[
        int | None,
        typer.Option(min=10, help="Examples inserted to be found; else 4000, or what fits."),
    ] = None,
    shadows: Annotated[int, typer.Option(min=2, help="Shadow models of LiRA.")] = 4,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; the run's, or runs/audit-NAME, if not given."),
    ] = None,
) -> None:
    """Try to break the privacy of CONFIG: a lower bound on epsilon, membership, inversion.

    Writes audit.json and inversion.png. With privacy off there is no epsilon to refute. Exit code
    1 if the claimed epsilon is refuted.
    """
    with errors(), signals():
        from fedpers.config import load_config
        from simulations.attacks import audit as attacks
        from simulations.backends.checks import absolute_paths, check

        find_plug_ins()
        file = config / "config.yaml" if config.is_dir() else config
        settings = absolute_paths(load_config(file, overrides or []))
        check(settings)
        folder = attacks.results_folder(config, overrides or [], out)
        found = attacks.audit(settings, folder, canaries=canaries, shadows=shadows)
        for line in [*attacks.audit_lines(found), f"files: {folder}"]:
            typer.echo(line)
        if attacks.refuted(found):
            raise RunError("audit: the guarantee does not hold: epsilon is above what is claimed")
