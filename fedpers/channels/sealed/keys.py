"""Keys: made once for a run, checked when loaded."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpers.channels.sealed.bfv import BfvClient
from fedpers.channels.sealed.cipher import ClientCipher, ServerCipher
from fedpers.channels.sealed.ckks import CkksClient
from fedpers.channels.sealed.guard import Malformed, frame, unframe
from fedpers.channels.sealed.lattice import Channel, Lattice
from fedpers.channels.sealed.parameters import SCHEMES, Parameters, bfv_for, ckks_for, rows_for
from fedpers.channels.sealed.server import SealServer
from fedpers.errors import ConfigError

MAGIC = b"FPKEYS1\n"
FORMAT = 1
CLIENT_FILE, SERVER_FILE = "client.key", "server.context"
NEXT_KEY, NEXT_CONTEXT = "next.key", "next.context"  # from encryption.rotate_at on


@dataclass(frozen=True, repr=False)
class KeyPair:
    """Both files' bytes: ``client`` holds the secret key."""

    key_id: str
    client: bytes
    server: bytes


def auto(cohort: int, *, rows: bool = False) -> Parameters:
    """The parameter set for a need.

    With ``rows`` (mixtures by recipient, similarities of heads), the three-prime CKKS set: BFV's
    noise and message share what weights would need. For one common sum, BFV up to 256 clients:
    two values share a coefficient there (3.5 bytes a value to send, 7 to receive; 17 bits for 32
    clients, unbiased). For more, BFV has one 24-bit value a coefficient and costs 7 and 14 bytes;
    CKKS costs 6 and 12, with an error of a few 1e-7 of the range at 1,000 clients.

    Raises:
        ConfigError: no such cohort.
    """
    if rows:
        return rows_for(cohort)
    parameters = bfv_for(cohort)
    return parameters if parameters.values == 2 else ckks_for(cohort)


def parameters_for(scheme: str, cohort: int, *, rows: bool = False) -> Parameters:
    """The parameter set of a scheme: "auto", "bfv", "ckks" or "ckks-rows" ("ckks" with rows).

    Raises:
        ConfigError: no such scheme or cohort, or rows under BFV.
    """
    if scheme not in ("auto", *SCHEMES):
        raise ConfigError("encryption.scheme", scheme, f"auto or {' or '.join(SCHEMES)}")
    if rows and scheme == "bfv":
        raise ConfigError("encryption.scheme", scheme, "ckks where rows are mixed by weights")
    if scheme == "auto":
        return auto(cohort, rows=rows)
    if rows or scheme == "ckks-rows":
        return rows_for(cohort)
    return bfv_for(cohort) if scheme == "bfv" else ckks_for(cohort)


def generate(parameters: Parameters) -> KeyPair:
    """A fresh key, in memory.

    The server's half holds no key: sums and mixtures need none.

    Raises:
        ConfigError: parameters that are unsafe or have no room.
    """
    lattice = Lattice(parameters)
    generator = lattice.seal.KeyGenerator(lattice.context)
    with Channel() as channel:
        secret = channel.save(generator.secret_key())
    key_id = hashlib.sha256(secrets.token_bytes(32)).hexdigest()[:16]
    header = {
        "format": FORMAT,
        "key_id": key_id,
        "scheme": parameters.scheme,
        "parameters": parameters.to_json(),
        "security": parameters.security,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return KeyPair(
        key_id,
        frame(MAGIC, {**header, "holds": "client"}, [secret]),
        frame(MAGIC, {**header, "holds": "server"}, []),
    )


def new_keys(folder: Path, scheme: str, cohort: int, rows: bool = False) -> str:
    """Write ``client.key`` and ``server.context`` (mode 0600) into ``folder``, made with mode 0700
    if it is not there.

    Args:
        scheme: as in ``parameters_for``.
        cohort: the most vectors that a sum will hold.
        rows: whether rows are mixed by weights, or heads compared.

    Returns:
        The key's id.

    Raises:
        ConfigError: a file is there already or cannot be written, or as in ``parameters_for``.
    """
    targets = folder / CLIENT_FILE, folder / SERVER_FILE
    for path in targets:
        if path.exists():
            raise _exists(path)
    pair = generate(parameters_for(scheme, cohort, rows=rows))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, data in zip(targets, (pair.client, pair.server), strict=True):
            _write(path, data)
    except OSError as error:
        raise ConfigError(
            "key folder", str(folder), f"one to write to ({error.strerror})"
        ) from None
    return pair.key_id


def deal_keys(scheme: str, cohort: int, rows: bool, server: Path, nodes: Sequence[Path]) -> None:
    """Make a key, and fresh folders with its halves: ``server.context`` in ``server``, and a copy
    of ``client.key`` in each of ``nodes``.

    Args:
        scheme, cohort, rows: as in ``new_keys``.

    Raises:
        ConfigError: as in ``new_keys``.
    """
    made = server.with_name(f"{server.name}-made")
    new_keys(made, scheme, cohort, rows)
    for folder in (server, *nodes):
        folder.mkdir(mode=0o700)
    for folder in nodes:
        shutil.copy2(made / CLIENT_FILE, folder)  # with its mode, 0600
    shutil.move(made / SERVER_FILE, server)  # all that the server gets
    shutil.rmtree(made)


def load_client(path: Path) -> ClientCipher:
    """A client's cipher from its key file.

    Raises:
        ConfigError: not such a file, changed or cut, or others may read it.
    """
    mode = path.stat().st_mode if path.exists() else 0
    if mode & 0o077:
        raise ConfigError("key file", oct(mode & 0o777), "mode 0600", f"chmod 600 {path}")
    return client_from(_read(path), str(path))


def load_server(path: Path) -> ServerCipher:
    """A server's cipher from its context file.

    Raises:
        ConfigError: not such a file, changed or cut.
    """
    return server_from(_read(path), str(path))


def client_from(data: bytes, name: str = "key") -> ClientCipher:
    """A client's cipher from the bytes of its key file.

    Raises:
        ConfigError: not such bytes.
    """
    header, parameters, blobs = _parse(data, name, "client", 1)
    kind = BfvClient if parameters.scheme == "bfv" else CkksClient
    return kind(parameters, header["key_id"], blobs[0])


def server_from(data: bytes, name: str = "context") -> ServerCipher:
    """A server's cipher from the bytes of its context file.

    Raises:
        ConfigError: not such bytes.
    """
    header, parameters, _ = _parse(data, name, "server", 0)
    return SealServer(parameters, header["key_id"])


def show(path: Path) -> dict[str, Any]:
    """A key or context file's header: id, scheme, parameters, security, when it was made.

    Raises:
        ConfigError: not such a file, changed or cut.
    """
    return _unframed(_read(path), str(path))[0]


def _parse(
    data: bytes, name: str, holds: str, blobs: int
) -> tuple[dict[str, Any], Parameters, tuple[bytes, ...]]:
    header, found = _unframed(data, name)
    if header["holds"] != holds:
        raise ConfigError(name, f"a {header['holds']} file", f"a {holds} file")
    if len(found) != blobs:
        raise ConfigError(name, f"{len(found)} keys", f"{blobs}", "make new keys")
    parameters = Parameters.from_json(header["parameters"])
    if parameters.scheme != header["scheme"]:
        raise ConfigError(name, header["scheme"], parameters.scheme)
    return header, parameters, found


def _unframed(data: bytes, name: str) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    try:
        header, blobs = unframe(MAGIC, data)
    except Malformed as error:
        raise ConfigError(name, str(error), "a key file of `fedpers`", "make new keys") from None
    if header.get("format") != FORMAT:
        raise ConfigError(name, f"format {header.get('format')}", f"format {FORMAT}")
    names = {"format", "key_id", "scheme", "parameters", "security", "created", "holds"}
    if set(header) != names or not isinstance(header["key_id"], str):
        raise ConfigError(name, sorted(header), f"a header of {sorted(names)}")
    return header, blobs


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), error.strerror, "a key file that can be read") from None


def _write(path: Path, data: bytes) -> None:
    """Atomically, mode 0600, and never over a file that is there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, this fails where a file is
    except FileExistsError:
        raise _exists(path) from None
    finally:
        os.unlink(temporary)


def _exists(path: Path) -> ConfigError:
    return ConfigError("key file", str(path), "a folder without keys", "move the old ones away")
