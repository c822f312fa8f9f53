"""What `fedpers devices check-server` finds, of doors that are open."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner
from upstream import Upstream

from fedpers.federation import Federation
from simulations.backends.flower import free_port, private_space
from simulations.commands.cli import app
from simulations.devices import check_server as module
from simulations.devices import gateway
from simulations.devices.certificates import Authority, Certificates, make_certificates
from simulations.devices.check_server import check_server
from simulations.devices.gateway import BRINGS, CONF, Gateway

needs_nginx = pytest.mark.skipif(
    not gateway.has_nginx(), reason=f"nginx is not installed: {BRINGS}"
)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Upstream, Certificates]]:
    certificates = make_certificates(tmp_path_factory.mktemp("server"))
    server = Upstream(certificates)
    yield server, certificates
    server.close()


def test_an_open_server_is_one_line_for_each_door(upstream: tuple[Upstream, Certificates]) -> None:
    server, certificates = upstream
    command = ["devices", "check-server", f"127.0.0.1:{server.port}", "--ca", str(certificates.ca)]
    ran = CliRunner().invoke(app, command)
    found = ran.stdout.splitlines()
    assert ran.exit_code == 1 and "findings" in ran.stderr
    assert "TLSv1.2: accepted, and takes TLS 1.3 alone" in found
    for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/health", "/docs"):
        assert f"POST {path} without a certificate: answered 200" in found
    for call in ("pull-messages", "get-fab", "register-node"):
        assert f"POST /v1/fleet/{call} without a certificate: answered 200" in found
    # They are sent as they are written: no client has made something else of them.
    paths = {one.path for one in server.seen}
    assert {"/v1/fleet/../control/list-nodes", "/v1/fleet/%2e%2e/control/list-nodes"} <= paths


HOLES = {
    "location / { return 403; }": ("location / { return 404; }", "POST /health with a device's"),
    "ssl_protocols TLSv1.3;": ("ssl_protocols TLSv1.2 TLSv1.3;", "TLSv1.2: accepted"),
    "ssl_verify_client on;": ("ssl_verify_client off;", None),  # the key is asked for all the same
    "if ($known = 0) { return 403; }": ("", "POST /v1/fleet/push-object with a device's"),
    "error_page 495 496 497 = @closed;": ("", None),  # nginx's own page is a closed door too
}


@needs_nginx
@pytest.mark.parametrize("line", HOLES)
def test_a_hole_in_the_gateway_is_found(
    line: str,
    upstream: tuple[Upstream, Certificates],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, certificates = upstream
    hole, expected = HOLES[line]
    written = line.replace("{", "{{").replace("}", "}}")
    assert written in CONF
    holed = CONF.replace(written, hole.replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(gateway, "CONF", holed)
    authority = Authority()
    files = tmp_path / "device.pem", tmp_path / "device.key"
    authority.device("device-0", *files)
    federation = Federation(
        superlink=f"127.0.0.1:{server.port}",
        certificate=str(certificates.server),
        certificate_key=str(certificates.server_key),
        authority=str(authority.write(tmp_path / "devices-ca.crt")),
        revoked=str(authority.revoke([], tmp_path / "revoked.pem")),
        superlink_authority=str(certificates.ca),
    )
    with private_space("for the open server") as space:
        running = Gateway(space, federation)
        address = f"127.0.0.1:{running.port}"
        found = list(check_server(address, certificates.ca, files, ports=()))
        running.stop()
    if expected is None:
        assert found == []
    else:
        assert any(one.startswith(expected) for one in found), found


def test_other_ports_of_flowers_are_looked_at(upstream: tuple[Upstream, Certificates]) -> None:
    server, certificates = upstream
    ports = (server.port, other := Upstream(certificates).port, free_port())
    found = list(check_server(f"127.0.0.1:{server.port}", certificates.ca, ports=ports))
    told = [one for one in found if one.startswith("port")]
    assert told == [f"port {other}: something answers, and nothing but port {server.port} needs to"]


def test_what_a_server_says_reaches_no_terminal(
    upstream: tuple[Upstream, Certificates], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that means something to a terminal, and one that drips for ever."""
    monkeypatch.setattr(module, "WAIT", 0.05)
    server, certificates = upstream
    for answer, slow in ((b"HTTP/1.1 \x1b[2J\x07 OK\r\n\r\n", 0.0), (b"x" * 1000, 0.01)):
        server.says = (answer, slow)
        try:
            found = list(check_server(f"127.0.0.1:{server.port}", certificates.ca, ports=()))
        finally:
            server.says = None
        assert len(found) > 20 and all(line.isprintable() for line in found)
        assert "POST /health without a certificate: answered something" in found


def test_wrong_inputs_are_one_line(
    upstream: tuple[Upstream, Certificates], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificates = upstream
    wrong = Authority().write(tmp_path / "other.crt")
    monkeypatch.setattr(module, "WAIT", 0.3)
    nobody = socket.create_server(("127.0.0.1", 0))  # it is there, and says nothing
    silent = nobody.getsockname()[1]
    here, free = f"127.0.0.1:{server.port}", free_port()
    for address, ca, said in (
        ("127.0.0.1", certificates.ca, "address: got '127.0.0.1', takes HOST:PORT"),
        ("127.0.0.1:0", certificates.ca, "takes HOST:PORT"),
        (
            f"127.0.0.1:{free}",
            certificates.ca,
            "and speaks TLS 1.3 (Connection refused)",
        ),
        (f"127.0.0.1:{silent}", certificates.ca, "speaks TLS 1.3 (no answer in 0.3 s)"),
        (here, wrong, "an authority that issued the certificate of 127.0.0.1"),
        (here, tmp_path / "none", "certificates and a key in PEM"),
    ):
        ran = CliRunner().invoke(app, ["devices", "check-server", address, "--ca", str(ca)])
        assert ran.exit_code == 2 and said in ran.stderr, (said, ran.stderr, ran.stdout)
        assert len(ran.stderr.splitlines()) == 1
    nobody.close()
