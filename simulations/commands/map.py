"""``fedpers map``: which kind of model wins, by examples a client and by privacy."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedpers.errors import RunError
from simulations.commands.console import errors, find_plug_ins, progress, signals

STRATEGIES = "fedavg,local:choose=true,intercept,fedavg-ft:choose=true,eb"


def map(
    config: Annotated[Path, typer.Argument(help="A YAML file, as configs/digits.yaml.")],
    sizes: Annotated[
        str, typer.Option(help="Training examples a client, separated by commas.")
    ] = "10,20,50,100",
    epsilons: Annotated[str, typer.Option(help="Privacy budgets; none for no privacy.")] = "none",
    strategies: Annotated[
        str, typer.Option(help="Names, as for compare; the kinds are found by them.")
    ] = STRATEGIES,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, one core each.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; runs/map-NAME if not given.")
    ] = None,
) -> None:
    """Draw where global, local, few numbers and personal models win.

    Each field is a comparison on the same splits and seeds. Stopped, it goes on where it was.
    """
    with errors(), signals():
        from fedpers.evaluation.shown import headline_of
        from simulations.experiments import maps
        from simulations.experiments.compare import compare

        find_plug_ins()
        given = (sizes.split(","), epsilons.split(","), strategies.split(","))
        plan = maps.plan_of(*given, seeds)
        folder = (out or Path("runs") / f"map-{config.stem}").resolve()
        every, reports, failed = [c for own in plan.values() for c in own], {}, []
        with progress(len(every)) as steps:
            for cell, report in compare(config, every, folder, jobs=jobs):
                steps.done(f"{cell.name}{'' if report else '  failed'}")
                if report is None:
                    failed.append(cell.name)
                else:
                    reports[cell] = report
        found = list(maps.regions(plan, reports))
        if not found:
            raise RunError(f"no run of the map has a figure, see {folder}")
        _, metric, _ = headline_of(next(iter(reports.values())))
        drawn = maps.text(found, metric)
        (folder / "map.md").write_text(drawn + "\n", encoding="utf-8")
        command = shlex.join(["fedpers", *sys.argv[1:]])
        title = f"{config.stem}: where federation pays"
        page = maps.map_html(title, found, reports, command)
        (folder / "map.html").write_text(page, encoding="utf-8")
        typer.echo(drawn)
        typer.echo(f"page: {folder / 'map.html'}")
        if failed:
            typer.echo(f"{len(failed)} runs failed and are left out, see {folder / failed[0]}")
