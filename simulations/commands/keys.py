"""``fedpers keys``: the keys of encrypted aggregation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.console import errors

app = typer.Typer(
    help="Keys of encrypted aggregation.", no_args_is_help=True, pretty_exceptions_enable=False
)


class Scheme(StrEnum):
    """What a key is for."""

    AUTO = "auto"
    BFV = "bfv"
    CKKS = "ckks"


@app.command()
def new(
    out: Annotated[Path, typer.Option(help="The folder for client.key and server.context.")],
    scheme: Annotated[Scheme, typer.Option(help="auto picks by the number of clients.")] = (
        Scheme.AUTO
    ),
    clients: Annotated[int, typer.Option(help="The most clients that a sum will hold.")] = 32,
    rows: Annotated[
        bool, typer.Option("--rows", help="For pFedSim, which mixes rows and compares heads.")
    ] = False,
) -> None:
    """Make a key. client.key goes to every node, and to nobody else; server.context to the server.

    client.key opens all that is sealed under it. Files are never overwritten.
    """
    with errors():
        from fedpers.channels.sealed.keys import CLIENT_FILE, SERVER_FILE, new_keys

        new_keys(out, scheme.value, clients, rows)
        _show(out / CLIENT_FILE)
        typer.echo(f"{out / CLIENT_FILE}: the secret key, for the nodes alone")
        typer.echo(f"{out / SERVER_FILE}: for the server")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="client.key or server.context.")],
) -> None:
    """Show what a key is for, and never the key."""
    with errors():
        _show(file)


def _show(file: Path) -> None:
    from fedpers.channels.sealed import show

    header = show(file)
    parameters = header["parameters"]
    numbers = f"degree {parameters['degree']}, modulus {sum(parameters['bits'])} bits"
    lines = {
        "id": header["key_id"],
        "scheme": header["scheme"],
        "parameters": f"{numbers}, room for {parameters['capacity']} clients",
        "security": f"{header['security']} bits",
        "made": header["created"],
        "holds": {"client": "the secret key", "server": "no secret"}[header["holds"]],
    }
    for name, value in lines.items():
        typer.echo(f"{name:11} {value}")
