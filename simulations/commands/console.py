"""What commands share: arguments, errors in one line, signals, the table of a run."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from fedpers.errors import FedpersError, RunError

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of runs.")]
Client = Annotated[str, typer.Option(help="A client's id, or its place from 0.")]

STOPPED = 130
# What a disk, or the system for it, says of files that it will not have written or read.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO}


class Backend(StrEnum):
    """Where the clients of a run are."""

    RAY = "ray"
    SERIAL = "serial"


def find_plug_ins() -> None:
    """Plug-ins by dotted path are looked for where the user is, last of all."""
    sys.path.append(os.getcwd())


def show(folder: Path, report: Mapping[str, Any] | None = None) -> None:
    """Print the table of a finished run, or of a report given, and where the run's files are."""
    import json

    from rich.console import Console

    from fedpers.evaluation import report_table

    report = report or json.loads((folder / "report.json").read_text(encoding="utf-8"))
    # Wide enough for the table where the output goes into a file.
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(report_table(report))
    if failed := report.get("failed"):
        console.print(f"failed: {failed}", soft_wrap=True, highlight=False, markup=False)
    if stopped := report.get("stopped"):
        console.print(f"stopped {stopped}", highlight=False)
    console.print(f"files: {folder}", soft_wrap=True, highlight=False, markup=False)


@dataclass
class Steps:
    """What is shown of work in steps: ``done`` is called with what has just been done, ``at`` with
    how far what is under way has come."""

    done: Callable[[str], None]
    at: Callable[[str], None]


@contextmanager
def progress(total: int) -> Iterator[Steps]:
    """A bar with the time left on standard error, or a line a step where that is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    done = 0
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        bar = shown.add_task("runs", total=total, last="")

        def advance(text: str) -> None:
            nonlocal done
            done += 1
            shown.update(bar, advance=1, last=text)
            if not console.is_terminal:
                typer.echo(f"{done}/{total}  {text}", err=True)

        def at(text: str) -> None:
            shown.update(bar, last=text)
            if not console.is_terminal:
                typer.echo(f"     {text}", err=True)

        yield Steps(advance, at)


def how_to_go_on(command: Sequence[str], folder: Path | None) -> str:
    """After a stop: the command that goes on with the run in a folder, if it got so far.

    Args:
        command: that started it, without ``--resume``.
        folder: None where there is none yet.
    """
    if folder is None or not any(folder.glob("checkpoint/round-*")):
        return "stopped before a round was over: there is nothing to go on with"
    return f"stopped; to go on: {shlex.join([*command, '--resume', str(folder)])}"


@contextmanager
def errors(stopped: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """Errors that a user can act on become one line and an exit code, without a traceback.

    Args:
        stopped: what to say after Ctrl-C.
    """
    try:
        yield
    except FedpersError as error:
        sys.stdout.flush()  # so that it is the last line, where both go into one file
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1 if isinstance(error, RunError) else 2) from None
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        sys.stdout.flush()
        typer.echo(f"error: {error.filename or 'files'}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        sys.stdout.flush()
        typer.echo(stopped(), err=True)
        raise typer.Exit(STOPPED) from None


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and a closed terminal stop a run as Ctrl-C does. A second signal waits in vain
    for the first one's cleaning up, which takes seconds."""
    signs = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for sign in signs:
            signal.signal(sign, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {sign: signal.signal(sign, stop) for sign in signs}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
