"""``fedpers new``: a first config for a table of one's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import errors


class Task(StrEnum):
    """What is learned."""

    CLASSES = "classification"
    NUMBERS = "regression"


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the config.")],
    source: Annotated[
        Path,
        typer.Option("--from", help="A csv file with a header line, or a folder of images."),
    ],
    label: Annotated[
        str | None, typer.Option(help="Of a csv file: the column that is to be predicted.")
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="The column that says whose a row is; none: rows are dealt.")
    ] = None,
    task: Annotated[
        Task | None, typer.Option(help="What to learn, where the column does not tell.")
    ] = None,
) -> None:
    """Write a commented config for your own table or images, which runs as it is.

    Images lie in folders: class/name.png, or client/class/name.png.
    """
    with errors():
        if source.is_dir():
            from simulations.experiments.new_images import write_images

            path, seen = write_images(folder, source)
            typer.echo(f"{path}: {seen}")
            typer.echo(f"next: fedpers check {path}; fedpers run {path}")
            return
        from fedpers.errors import ConfigError
        from simulations.experiments import new as making
        from simulations.experiments.columns import look

        if label is None:
            raise ConfigError("--label", None, "the column that is to be predicted")
        found = look(source, label, client, None if task is None else task.value)
        path = making.write(folder, source, label, client, found)
        learned = "a number" if found.classes is None else f"{len(found.classes)} classes"
        typer.echo(f"{path}: {len(found.features)} features, {learned}, {found.rows} rows")
        for name, why in found.left_out.items():
            typer.echo(f"left out: {name}: {why}")
        typer.echo(f"next: fedpers check {path}; fedpers run {path}")
