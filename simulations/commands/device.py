"""``fedpers device``: whether a device can take part, found out on it, and its policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import Overrides, errors, signals

app = typer.Typer(help="On a device.", no_args_is_help=True, pretty_exceptions_enable=False)


policies = typer.Typer(
    help="What a device's owner allows.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(policies, name="policy")


@app.callback()
def on_a_device() -> None:
    """On a device."""


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="The run's settings, a YAML file.")],
    data: Annotated[Path, typer.Option(help="The device's file: npz, csv or parquet.")],
    client: Annotated[str, typer.Option(help="The client's id.")] = "device",
    state: Annotated[Path | None, typer.Option(help="The device's folder.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The folder with client.key.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The file of its policy.")] = None,
    overrides: Overrides = None,
) -> None:
    """Check a device's policy, data, model, key and budget before it joins. Nothing is sent."""
    with errors():
        from fedpers.config import load_config
        from simulations.devices.check import check_device

        settings = load_config(config, overrides or [])
        for line in check_device(settings, client, data, state, keys, policy):
            typer.echo(line)


@app.command()
def run(
    server: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink, or its gateway.")],
    root_certificates: Annotated[Path, typer.Option(help="Who signed its certificate, PEM.")],
    key: Annotated[Path, typer.Option(help="The node's registered key, OpenSSH's format.")],
    client: Annotated[str, typer.Option(help="The client's id.")],
    data: Annotated[Path, typer.Option(help="The device's file: npz, csv or parquet.")],
    state: Annotated[Path, typer.Option(help="The device's folder.")],
    policy: Annotated[Path, typer.Option(help="The file of its policy.")],
    keys: Annotated[Path | None, typer.Option(help="The folder with client.key.")] = None,
    counter: Annotated[
        Path | None,
        typer.Option(
            help="A file outside of the state and its backups, for older ones are refused."
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="For a gateway that asks for one, PEM.")
    ] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
) -> None:
    """Be a node that runs what is installed here, and no app that is sent, until it is stopped."""
    with errors(), signals():
        from clients.node.access import Access
        from clients.node.device import Device
        from clients.node.executor import Executor, Resident
        from clients.node.fleet import Fleet
        from clients.policy.policy import read_policy
        from fedpers.memory import limit_memory

        access = Access(server, root_certificates, key, certificate, certificate_key)
        device = Device(client, data, state, keys, policy, counter)
        limit_memory(read_policy(policy).memory)
        try:
            Resident(Fleet(access), Executor(device), typer.echo).run()
        except KeyboardInterrupt:
            typer.echo("stopped")


@policies.command()
def new(
    operator: Annotated[list[str], typer.Option(help="An operator's public key; several times.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("policy.yaml"),
    config: Annotated[
        Path | None, typer.Option(help="Allow just a run of these settings, a YAML file.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a policy, strict and with what each key says; its owner loosens what may be."""
    with errors():
        from clients.policy.policy import write_policy
        from clients.policy.wishes import just
        from fedpers.config import load_config
        from strategies.base import find_strategy

        rules = {}
        if config is not None:
            settings = load_config(config, overrides or [])
            rules = just(settings, find_strategy(settings).client_side())
        write_policy(out, operators=tuple(operator), **rules)
        typer.echo(str(out))
