"""``fedpers keys``: the keys of encrypted aggregation, and their check before a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpers.errors import ConfigError
from simulations.commands.console import errors

if TYPE_CHECKING:  # they take seconds to import
    from fedpers.config import Config
    from strategies.base import PersonalizedStrategy

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


def check_keys(config: Config, strategy: type[PersonalizedStrategy], clients: int) -> None:
    """Check the key that ``encryption.keys`` names, or that one can be made for the run.

    Args:
        clients: how many there are.

    Raises:
        ConfigError: a file that is missing or cannot be used, two that do not belong together, no
            room for so many clients, or a scheme that the method cannot use.
    """
    from fedpers.channels.sealed import load_client, load_server, parameters_for
    from fedpers.channels.sealed.keys import CLIENT_FILE, SERVER_FILE

    settings, rows = config.encryption, strategy.mixes_rows
    if not settings.enabled or not strategy.shares:
        return
    if settings.keys is None:
        parameters_for(settings.scheme, max(1, clients), rows=rows)
        return
    folder = Path(settings.keys)
    cure = f"fedpers keys new --out DIR --clients {clients}{' --rows' if rows else ''}"
    for name in (CLIENT_FILE, SERVER_FILE):
        if not (folder / name).is_file():
            raise ConfigError("encryption.keys", str(folder), f"a folder with {name}", cure)
    client, server = load_client(folder / CLIENT_FILE), load_server(folder / SERVER_FILE)
    if client.key_id != server.key_id:
        got = f"{CLIENT_FILE} {client.key_id} and {SERVER_FILE} {server.key_id}"
        raise ConfigError("encryption.keys", got, "two files of one key", cure)
    parameters = client.parameters
    if rows and parameters.scheme != "ckks-rows":
        raise ConfigError("encryption.keys", parameters.scheme, "ckks-rows for this method", cure)
    if settings.scheme not in ("auto", parameters.scheme.removesuffix("-rows")):
        takes = f"auto or {parameters.scheme.removesuffix('-rows')}, as the key in {folder} is"
        raise ConfigError("encryption.scheme", settings.scheme, takes)
    if clients > parameters.capacity:
        takes = f"a key with room for {clients} clients"
        raise ConfigError("encryption.keys", f"room for {parameters.capacity}", takes, cure)
