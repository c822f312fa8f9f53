"""The command line: ``fedpers run CONFIG [key=value ...]``.

Exit codes: 0 the run completed, 1 it did not, 2 a mistake that the user can mend, 130 stopped by
Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedpers import __version__
from fedpers.errors import RunError
from fedpers.packages import check_packages
from simulations.commands import devices as device_cli
from simulations.commands import keys
from simulations.commands.console import errors as _errors
from simulations.commands.console import progress as _progress
from simulations.commands.console import show as _show
from simulations.commands.console import signals as _signals

app = typer.Typer(
    name="fedpers",
    help="Personalised federated learning on Flower.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Backend(StrEnum):
    """Where the clients run."""

    RAY = "ray"
    SERIAL = "serial"


app.add_typer(device_cli.app, name="device")
app.add_typer(keys.app, name="keys")
app.add_typer(device_cli.rehearsal, name="devices")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Personalised federated learning on Flower."""
    if version:
        typer.echo(f"fedpers {__version__}")
    with _errors():
        check_packages()


@app.command()
def run(
    config: Annotated[Path, typer.Argument()],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
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
    with _errors(), _signals():
        # Here, because they take seconds to import.
        from fedpers.config import load_config
        from fedpers.evaluation.run_folder import new_run_id
        from simulations.backends.checks import absolute_paths, check, check_ray
        from simulations.backends.launcher import launch
        from simulations.backends.serial import run_serial

        # Plug-ins by dotted path are looked for where the user is, last of all.
        sys.path.append(os.getcwd())
        settings = absolute_paths(load_config(config, overrides or []))
        if backend is Backend.RAY:
            check_ray(settings)
        check(settings)
        folder = resume.resolve() if resume else Path(settings.output) / new_run_id(settings)
        if backend is Backend.SERIAL:
            run_serial(settings, folder, resume=resume is not None)
        else:
            launch(settings, folder, resume=resume is not None, verbose=verbose)
        _show(folder)


@app.command()
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
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; runs/compare-NAME if not given.")
    ] = None,
) -> None:
    """Run several methods on the same splits and seeds and print a table.

    Stopped, it goes on where it was: a run whose report is there is not repeated.
    """
    with _errors(), _signals():
        from fedpers.errors import RunError
        from simulations.experiments import compare as comparison
        from simulations.experiments.compare_page import compare_html

        sys.path.append(os.getcwd())
        plan = comparison.cells(strategies.split(","), seeds, settings or [], first_seed)
        folder = (out or Path("runs") / f"compare-{config.stem}").resolve()
        reports, failed = {}, []
        with _progress(len(plan)) as advance:
            for cell, report in comparison.compare(config, plan, folder, jobs=jobs):
                advance(f"{cell.name}{'' if report else '  failed'}")
                if report is None:
                    failed.append(cell.name)
                else:
                    reports[cell] = report
        in_order = {cell: reports[cell] for cell in plan if cell in reports}
        text = comparison.table(in_order, against)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.md").write_text(text + "\n", encoding="utf-8")
        if in_order:
            title, command = (
                f"{config.stem}: methods compared",
                shlex.join(["fedpers", *sys.argv[1:]]),
            )
            document = compare_html(title, in_order, against, command)
            (folder / "compare.html").write_text(document, encoding="utf-8")
        typer.echo(text)
        if failed:
            reason = folder / failed[0] / comparison.ERROR
            raise RunError(f"{len(failed)} runs failed, see {reason}")


@app.command()
def attack(
    config: Annotated[Path, typer.Argument(help="A YAML file, as configs/digits.yaml.")],
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; parameters as in ditto:mu=0.1.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    attack: Annotated[
        str, typer.Option(help="label-flip, sign-flip or backdoor; several with commas.")
    ] = "backdoor",
    share: Annotated[float, typer.Option(help="Of the clients that are malicious.")] = 0.2,
    combine: Annotated[
        str, typer.Option(help="mean, median, trimmed or krum; several with commas.")
    ] = "mean",
    target: Annotated[int, typer.Option(help="The class that a backdoor aims at.")] = 0,
    boost: Annotated[float, typer.Option(help="Multiplies a backdoor's change.")] = 1.0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 1,
) -> None:
    """Have a share of the clients attack, and print what that does to the honest ones' models.

    Accuracy of personal and global models, what the attack costs, and how often a backdoor's
    trigger works; each method also runs without an attack.
    """
    with _errors(), _signals():
        from simulations.attacks import poisoning as attacking

        sys.path.append(os.getcwd())
        attacks = [attacking.Attack(k, share, target, boost) for k in attack.split(",")]
        plan = attacking.plan_of(strategies, combine, seeds)
        outcomes = {}
        for cell, kind, outcome in attacking.run_attacks(config, overrides or [], plan, attacks):
            outcomes[cell, kind] = outcome
            typer.echo(f"{cell.name}  {kind}", err=True)
        typer.echo(attacking.table(outcomes))


@app.command()
def audit(
    config: Annotated[Path, typer.Argument(help="A YAML file, or the folder of a run.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
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
    with _errors(), _signals():
        from fedpers.config import load_config
        from simulations.attacks import audit as attacks
        from simulations.backends.checks import absolute_paths, check

        sys.path.append(os.getcwd())
        file = config / "config.yaml" if config.is_dir() else config
        settings = absolute_paths(load_config(file, overrides or []))
        check(settings)
        folder = attacks.results_folder(config, overrides or [], out)
        found = attacks.audit(settings, folder, canaries=canaries, shadows=shadows)
        for line in [*attacks.audit_lines(found), f"files: {folder}"]:
            typer.echo(line)
        if attacks.refuted(found):
            raise RunError("audit: the guarantee does not hold: epsilon is above what is claimed")


@app.command()
def bench(
    rows: Annotated[
        str | None,
        typer.Option(help="Names of rows, separated by commas; if not given all that are quick."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each way is timed.")] = 9,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
) -> None:
    """Time what is done here beside the usual way, by turns.

    The rows task-flower and tiny-flower start whole simulations, and are measured if named only.
    """
    with _errors(), _signals():
        from simulations.bench import table as measured

        found = measured.bench(rows.split(",") if rows else [], repeats, typer.echo)
        if out is not None:
            measured.save(found, out)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
) -> None:
    """Write report.html of a finished RUN anew from its files, and print its table."""
    with _errors():
        from fedpers.evaluation import write_html

        write_html(folder)
        _show(folder)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of runs.")],
    client: Annotated[str, typer.Option(help="A client's id, or its place from 0.")],
    file: Annotated[Path, typer.Option("--input", help="x.npz with array x, or a csv file.")],
) -> None:
    """Show what a client's personal, global and gated model say of new examples.

    A folder of runs stands for its newest run.
    """
    with _errors(), _signals():
        from rich.console import Console

        from simulations.experiments import predict as prediction

        sys.path.append(os.getcwd())
        run = prediction.FinishedRun(folder)
        x = prediction.read_inputs(file, run.config, run.data.signature)
        found = run.predict(run.client(client), x)
        console = Console(width=None if sys.stdout.isatty() else 100)
        console.print(prediction.table(found))
        console.print(f"run: {run.folder}", soft_wrap=True, highlight=False)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of runs.")],
    client: Annotated[str, typer.Option(help="A client's id, or its place from 0.")],
    out: Annotated[Path, typer.Option(help="The folder to write, not there yet.")],
) -> None:
    """Write a client's personal model as a folder for PEFT and transformers, with a manifest."""
    with _errors(), _signals():
        from simulations.experiments import predict as prediction

        sys.path.append(os.getcwd())
        run = prediction.FinishedRun(folder)
        run.export(run.client(client), out)
        typer.echo(f"files: {out.resolve()}")


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of runs.")],
    once: Annotated[bool, typer.Option("--once", help="Show how it stands, and end.")] = False,
) -> None:
    """Follow a run: rounds, accuracy over clients, epsilon, time left; ends with its report."""
    with _errors(), _signals():
        from simulations.experiments import watch as watching

        watching.watch(folder, once=once)


def main() -> None:
    """The console script ``fedpers``."""
    app()


if __name__ == "__main__":
    main()
