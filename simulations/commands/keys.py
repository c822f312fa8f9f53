"""``fedpers keys``: the keys of encrypted aggregation."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedpers.errors import ConfigError
from simulations.commands.console import errors

PUBLIC = "public.json"

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


@app.command()
def identity(
    client: Annotated[str, typer.Argument(help="The client's id.")],
    out: Annotated[Path, typer.Option(help="The folder of the device's keys.")],
) -> None:
    """Make a client's identity on its device: identity.json stays there, public.json is for the
    registry."""
    with errors():
        from fedpers.channels.build import identify
        from fedpers.channels.identity.home import IDENTITY

        public = identify(client, out)
        (out / PUBLIC).write_text(json.dumps(public.to_json(), indent=1), encoding="utf-8")
        typer.echo(f"{out / IDENTITY}: who signs as {client}, for this device alone")
        typer.echo(f"{out / PUBLIC}: its public half, for the registry")


@app.command()
def registry(
    publics: Annotated[list[Path], typer.Argument(help="Each client's public.json.")],
    out: Annotated[Path, typer.Option(help="The file, registry.json.")],
) -> None:
    """Put the public halves of all clients together: for the server and every device, by a way that
    you trust."""
    with errors():
        from fedpers.channels.identity.registry import Public, Registry

        found = Registry(Public.from_json(_read(path)) for path in publics)
        out.write_text(found.to_json(), encoding="utf-8")
        typer.echo(f"{out}: {len(found.publics)} clients")


def _read(path: Path) -> dict[str, str]:
    """A public half.

    Raises:
        ConfigError: no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError):
        takes = "a public half, as `fedpers keys identity` writes it"
        raise ConfigError(str(path), "no such file", takes) from None


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
