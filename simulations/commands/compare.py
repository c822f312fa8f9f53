"""``fedpers compare``: several methods on the same splits and seeds."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedpers.errors import ConfigError, RunError
from simulations.commands.console import Backend, errors, find_plug_ins, progress, signals


def compare(
    config: Annotated[Path, typer.Argument(help="A YAML file, as configs/digits.yaml.")],
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; parameters as in ditto:mu=0.1.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for all runs, or key=v1,v2 to compare both."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A method: adds paired differences to it.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, one core each.")] = 1,
    backend: Annotated[
        Backend, typer.Option(help="serial: each run in one process. ray: Flower's simulation.")
    ] = Backend.SERIAL,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The same bits as `fedpers run`: no clients train at once."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; runs/compare-NAME if not given.")
    ] = None,
) -> None:
    """Run several methods on the same splits and seeds and print a table.

    Stopped, it goes on where it was: a run whose report is there is not repeated.
    """

    def again() -> str:
        return f"stopped; to go on: {shlex.join(['fedpers', *sys.argv[1:]])}"

    with errors(again), signals():
        methods = strategies.split(",")
        if against is not None and against not in methods:
            raise ConfigError(
                "--against", against, f"one of the methods compared: {', '.join(methods)}"
            )
        typer.echo(f"{config.name}: {strategies} compared", err=True)  # imports take seconds
        from simulations.experiments import compare as comparison
        from simulations.experiments.compare_page import compare_html, conclusion
        from simulations.experiments.following import following

        find_plug_ins()
        plan = comparison.cells(methods, seeds, settings or [], first_seed)
        folder = (out or Path("runs") / f"compare-{config.stem}").resolve()
        reports, failed = {}, []
        runs = [folder / cell.name for cell in plan]
        typer.echo(f"{len(runs)} runs, in {folder}", err=True)
        with progress(len(plan)) as steps, following(runs, steps.at):
            made = comparison.compare(
                config, plan, folder, jobs=jobs, backend=backend.value, exact=exact
            )
            for cell, report in made:
                steps.done(f"{cell.name}{'' if report else '  failed'}")
                if report is None:
                    failed.append(cell.name)
                else:
                    reports[cell] = report
        in_order = {cell: reports[cell] for cell in plan if cell in reports}
        text = comparison.table(in_order, against)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.md").write_text(text + "\n", encoding="utf-8")
        if in_order:
            data = next(iter(in_order.values())).get("data") or config.stem
            title, command = f"Methods compared on {data}", ["fedpers", *sys.argv[1:]]
            document = compare_html(title, in_order, against, shlex.join(command))
            (folder / "compare.html").write_text(document, encoding="utf-8")
        typer.echo(text)
        if in_order:
            typer.echo(conclusion(in_order))
        if failed:
            reason = folder / failed[0] / comparison.ERROR
            raise RunError(f"{len(failed)} runs failed, see {reason}")
