"""Whether a server answers anything but the calls that a node needs, found out from outside:
``fedpers devices check-server``."""

from __future__ import annotations

import re
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedpers.errors import ConfigError
from simulations.devices.gateway import CALLS

WAIT = 10.0  # seconds for an answer, and for a byte of it
MOST = 65_536  # bytes of an answer that are read
FORBIDDEN = b"403"
NGINX = b"<hr><center>nginx"  # a page of its own, and none of whom it stands for
FLEET = "/v1/fleet/"
PORTS = (9091, 9092, 9093, 9094, 9095)  # Flower's, of this version and of those before it

# What must not be there: who has it runs code, lets nodes in, or learns who is there.
CONTROL = tuple(
    f"/v1/control/{call}"
    for call in (
        *("start-run", "stop-run", "list-runs", "stream-logs", "pull-artifacts", "list-nodes"),
        *("register-node", "unregister-node", "get-login-details", "get-auth-tokens"),
    )
)
OTHER = (
    *("/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/v1/runtime/push-messages"),
    *("/v1/runtime/pull-messages", "/v1/runtime/get-nodes", "/v1/runtime/push-object"),
    *("/v1/responses", "/health", "/docs", "/redoc", "/openapi.json", "/metrics", "/", "*"),
    *(f"{FLEET}{call}" for call in ("get-fab", "register-node", "unregister-node", "")),
)
# Spellings of a path that one program may read as a node's call, and the next as another's.
ODD = (
    f"{FLEET}../control/list-nodes",
    f"{FLEET}pull-messages/../../control/list-nodes",
    f"{FLEET}%2e%2e/control/list-nodes",
    f"{FLEET}..%2fcontrol/list-nodes",
    f"{FLEET}..%252fcontrol%252flist-nodes",
    "/v1/control/list-nodes/../../fleet/pull-messages",
    "/v1/control/list-nodes/%2e%2e/%2e%2e/fleet/pull-messages",
    "/v1/control/list-nodes;/../../fleet/pull-messages",
    "/v1/control/list-nodes%00/../../fleet/pull-messages",
    "/v1/control/list-nodes#/../../fleet/pull-messages",
    "//v1/control/list-nodes",
    "/v1/./control/list-nodes",
    "/V1/Control/list-nodes",
    "\\v1\\control\\list-nodes",
    "http://localhost/v1/control/list-nodes",
    f"{FLEET}pull-messages%0d%0aX: y",
    f"{FLEET}%70ull-messages",
    f"{FLEET}pull-messages/",
    f"{FLEET}pull-messages?x=/v1/control/list-nodes",
)


def check_server(
    address: str,
    authority: Path,
    certificate: tuple[Path, Path] | None = None,
    *,
    ports: tuple[int, ...] = PORTS,
) -> Iterator[str]:
    """What is open at ``HOST:PORT`` besides a node's calls, a line each; nothing if all is closed.

    Args:
        address: the server's.
        authority: who issued its certificate.
        certificate: a device's certificate and its key, to look with the eyes of a device too: a
            node's calls are then tried with no key of any node's.
        ports: of the same host, where nothing may answer either.

    Raises:
        ConfigError: ``address`` is none, or nothing is there.
    """
    host, _, number = address.rpartition(":")
    if not host or not number.isdecimal() or not 0 < int(number) < 2**16:
        raise ConfigError("address", address, "HOST:PORT")
    port, host = int(number), host.strip("[]")
    _check_there(host, port, authority)
    yield from _old_tls(host, port, authority)
    yield from _plain(host, port)
    eyes: list[tuple[str, tuple[Path, Path] | None]] = [("without a certificate", None)]
    if certificate is not None:
        eyes.append(("with a device's certificate", certificate))
    for whose, own in eyes:
        context = _context(authority, own)
        for path in (*CONTROL, *OTHER, *ODD, *(f"{FLEET}{call}" for call in CALLS)):
            yield from _open("POST", path, whose, ask(host, port, context, "POST", path))
        for method, path in (("GET", "/health"), ("GET", "/docs"), ("OPTIONS", "/"), *_methods()):
            yield from _open(method, path, whose, ask(host, port, context, method, path))
    for other in ports:
        if other != port and _listens(host, other):
            yield f"port {other}: something answers, and nothing but port {port} needs to"


def _methods() -> Iterator[tuple[str, str]]:
    for method in ("GET", "PUT", "DELETE", "TRACE", "CONNECT"):
        yield method, f"{FLEET}pull-messages"


def closed_door(answer: bytes) -> bool:
    """Whether that is the answer of a closed door: none, 403, or nginx's own to what it makes no
    sense of, which it says before it looks where a request goes."""
    status = answer.split(b" ", 2)[1:2]
    senseless = status in ([b"400"], [b"405"]) and NGINX in answer
    return not answer or status == [FORBIDDEN] or senseless


def _open(method: str, path: str, whose: str, answer: bytes) -> Iterator[str]:
    """A finding, if that was answered otherwise."""
    if not closed_door(answer):
        found = re.match(rb"HTTP/1\.[01] ([0-9]{3}) ", answer)
        yield f"{method} {path} {whose}: answered {found[1].decode() if found else 'something'}"


def _check_there(host: str, port: int, authority: Path) -> None:
    """What is not there, or cannot be spoken to, is not closed."""
    context = _context(authority, None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        with (
            socket.create_connection((host, port), timeout=WAIT) as raw,
            context.wrap_socket(raw, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        takes = f"an authority that issued the certificate of {host} ({error.verify_message})"
        raise ConfigError("--ca", str(authority), takes) from None
    except OSError as error:
        slow = isinstance(error, TimeoutError)
        reason = f"no answer in {WAIT:g} s" if slow else error.strerror or str(error)
        takes = f"a server that is there and speaks TLS 1.3 ({reason})"
        raise ConfigError("address", f"{host}:{port}", takes) from None


def _listens(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=2):
        return True
    return False


def _context(authority: Path, certificate: tuple[Path, Path] | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(authority))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
    except (OSError, ssl.SSLError) as error:
        takes = f"certificates and a key in PEM ({error.strerror or error})"
        raise ConfigError("--ca, --certificate", str(authority), takes) from None
    return context


def _old_tls(host: str, port: int, authority: Path) -> Iterator[str]:
    context = _context(authority, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are what is looked for
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        suppress(OSError),
        socket.create_connection((host, port), timeout=WAIT) as raw,
        context.wrap_socket(raw, server_hostname=host) as inside,
    ):
        yield f"{inside.version()}: accepted, and takes TLS 1.3 alone"


def _plain(host: str, port: int) -> Iterator[str]:
    with suppress(OSError), socket.create_connection((host, port), timeout=WAIT) as raw:
        raw.sendall(_request(host, "POST", f"{FLEET}pull-messages"))
        yield from _open("POST", f"{FLEET}pull-messages", "without TLS", _answer(raw))


def ask(
    host: str, port: int, context: ssl.SSLContext, method: str, path: str, header: str = ""
) -> bytes:
    """The answer to a request that is sent as it is written; nothing without one.

    Args:
        header: one more, ``NAME: VALUE``.
    """
    try:
        with (
            socket.create_connection((host, port), timeout=WAIT) as raw,
            context.wrap_socket(raw, server_hostname=host) as inside,
        ):
            inside.sendall(_request(host, method, path, header))
            return _answer(inside)
    except OSError:
        return b""


def _request(host: str, method: str, path: str, header: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"{header}\r\n" if header else ""
    body = "Content-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
    return (head + body).encode("latin-1")


def _answer(connection: socket.socket) -> bytes:
    answer, until = b"", time.monotonic() + WAIT
    with suppress(OSError):
        while len(answer) < MOST and time.monotonic() < until:
            if not (more := connection.recv(4096)):
                break
            answer += more
    return answer
