"""``fedpers attack``: what malicious clients do to the honest ones' models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors, find_plug_ins, signals


def attack(
    config: Annotated[Path, typer.Argument(help="A YAML file, as configs/digits.yaml.")],
    strategies: Annotated[
        str, typer.Option(help="Names, separated by commas; parameters as in ditto:mu=0.1.")
    ],
    overrides: Overrides = None,
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
    with errors(), signals():
        from simulations.attacks import poisoning as attacking

        find_plug_ins()
        attacks = [attacking.Attack(k, share, target, boost) for k in attack.split(",")]
        plan = attacking.plan_of(strategies, combine, seeds)
        outcomes = {}
        for cell, kind, outcome in attacking.run_attacks(config, overrides or [], plan, attacks):
            outcomes[cell, kind] = outcome
            typer.echo(f"{cell.name}  {kind}", err=True)
        typer.echo(attacking.table(outcomes))
