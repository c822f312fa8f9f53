"""The gateway, in front of a server that answers whatever reaches it."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from upstream import Upstream

from clients.node import fleet
from fedpers.errors import ConfigError
from fedpers.federation import Federation, read_federation
from simulations.backends.flower import Space, private_space
from simulations.devices import gateway as module
from simulations.devices.certificates import (
    Authority,
    Certificates,
    make_certificates,
    make_node_key,
)
from simulations.devices.check_server import check_server
from simulations.devices.gateway import (
    BRINGS,
    BURST,
    CALLS,
    Gateway,
    configuration,
    has_nginx,
    nginx,
)

needs_nginx = pytest.mark.skipif(not has_nginx(), reason=f"nginx is not installed: {BRINGS}")
DEVICES = ("device-0", "device-1", "Device-2.x")


class Place:
    """A gateway in front of an open server, and who might come to it."""

    def __init__(self, space: Space) -> None:
        folder = space.folder
        self.space, self.folder = space, folder
        self.certificates: Certificates = make_certificates(folder)
        self.upstream = Upstream(self.certificates)
        self.authority = Authority("devices of a test")
        self.issued: dict[str, x509.Certificate] = {}
        lines = ["devices:"]
        for name in DEVICES:
            self.issue(name)
            make_node_key(folder, f"node-{name}")
            lines.append(f"  {name}: {{key: node-{name}.pub}}")
        (folder / "federation.yaml").write_text("\n".join(lines))
        self.federation = replace(
            read_federation(folder / "federation.yaml"),
            superlink=f"127.0.0.1:{self.upstream.port}",
            certificate=str(self.certificates.server),
            certificate_key=str(self.certificates.server_key),
            authority=str(self.authority.write(folder / "devices-ca.crt")),
            revoked=str(self.authority.revoke([], folder / "revoked.pem")),
            superlink_authority=str(self.certificates.ca),
            megabytes=1,
            requests=50,
        )
        self.gateway = Gateway(space, self.federation)

    def issue(self, name: str, authority: Authority | None = None) -> None:
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self.issued[name] = (authority or self.authority).device(name, *files)

    def key(self, name: str) -> str:
        return base64.b64encode(self.federation.devices[name].key).decode()

    def connect(self, name: str | None) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        if name is not None:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        port = self.gateway.port
        return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)

    def ask(
        self,
        name: str | None,
        key: str | None = None,
        path: str = "/v1/fleet/pull-messages",
        method: str = "POST",
        body: bytes = b"",
    ) -> int:
        """The status of a call of a device's, with the key of ``key``, else its own."""
        with closing(self.connect(name)) as there:
            shown = self.key(key or name) if (key or name) in DEVICES else key or ""
            there.request(method, path, body, {"flwr-public-key": shown} if shown else {})
            return there.getresponse().status


@pytest.fixture(scope="module")
def running() -> Iterator[Place]:
    with private_space("for the open server, which is in this process") as space:
        place = Place(space)
        yield place
        place.gateway.stop()
        place.upstream.close()


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    running.upstream.seen.clear()
    yield running


@needs_nginx
@pytest.mark.parametrize("call", CALLS)
def test_a_device_may_call_what_it_needs(place: Place, call: str) -> None:
    for name in DEVICES:
        assert place.ask(name, path=f"/v1/fleet/{call}", body=b"x" * 2000) == 200
    seen = [("POST", f"/v1/fleet/{call}", [place.key(name)], 2000) for name in DEVICES]
    assert [tuple(one) for one in place.upstream.seen] == seen


@needs_nginx
def test_nothing_else_reaches_the_server(place: Place) -> None:
    files = place.folder / "device-0.pem", place.folder / "device-0.key"
    address = f"127.0.0.1:{place.gateway.port}"
    assert list(check_server(address, place.certificates.ca, files, ports=())) == []
    assert place.upstream.seen == []


@needs_nginx
def test_odd_spellings_with_the_right_key_reach_nothing_but_their_call(place: Place) -> None:
    for path in (
        "/v1/fleet/../control/list-nodes",
        "/v1/control/start-run/../../fleet/pull-messages",
        "/v1/control/start-run/%2e%2e/%2e%2e/fleet/pull-messages",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/%70ull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/get-fab",
        "/v1/fleet/register-node",
        "/v1/control/start-run",
    ):
        assert place.ask("device-0", path=path) in (400, 403), path
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD"):
        assert place.ask("device-0", method=method) == 403, method
    assert place.upstream.seen == []


@needs_nginx
def test_a_certificate_goes_with_its_own_key_alone(place: Place) -> None:
    assert place.ask("device-0", key="device-1") == 403
    assert place.ask("device-0", key="none") == 403  # nobody's
    place.issue("nobody")  # of the right authority, in no line of the file
    for key in (None, "device-0", "", "none", "0", ":"):
        assert place.ask("nobody", key=key) == 403
    place.issue("DEVICE-0")  # names that differ in case are two
    assert place.ask("DEVICE-0", key="device-0") == 403
    place.issue("Device-2_x")  # a point is a point
    assert place.ask("Device-2_x", key="Device-2.x") == 403
    foreign = Authority("devices of a test")  # its name is the right one
    (place.folder / "foreign").mkdir()
    files = place.folder / "foreign.pem", place.folder / "foreign.key"
    foreign.device("device-0", *files)
    assert place.ask("foreign", key="device-0") == 403
    assert place.ask(None, key="device-0") == 403
    assert place.upstream.seen == []


@needs_nginx
def test_of_two_keys_in_a_call_one_is_passed_on(place: Place) -> None:
    with closing(place.connect("device-0")) as there:
        there.putrequest("POST", "/v1/fleet/pull-messages")
        for name in ("device-0", "device-1"):
            there.putheader("flwr-public-key", place.key(name))
        there.putheader("flwr_public_key", place.key("device-1"))
        there.putheader("content-length", "0")
        there.endheaders()
        there.getresponse()
    assert all(one.keys == [place.key("device-0")] for one in place.upstream.seen)


HIDDEN = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
SMUGGLED = {
    "after another": (b"Content-Length: 0\r\n\r\n", HIDDEN),
    "in a body with two lengths": (
        b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN),
        HIDDEN,
    ),
    "after the last chunk": (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(HIDDEN)),
        HIDDEN,
    ),
    "chunked, of another spelling": (
        b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        HIDDEN,
    ),
    "chunked twice": (
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        HIDDEN,
    ),
    "a chunk of another size": (
        b"Transfer-Encoding: chunked\r\n\r\n0;x=\n\r\n\r\n",
        HIDDEN,
    ),
    "behind a bare newline": (b"X: y\nContent-Length: 0\n\n", HIDDEN),
    "in a header": (b"X: y\r\n\tz\r\nContent-Length : 0\r\n\r\n", HIDDEN),
    "in an upgrade": (b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", HIDDEN),
}


@needs_nginx
@pytest.mark.parametrize("how", SMUGGLED)
def test_no_call_is_hidden_in_another(place: Place, how: str) -> None:
    head, rest = SMUGGLED[how]
    context = ssl.create_default_context(cafile=str(place.certificates.ca))
    context.load_cert_chain(place.folder / "device-0.pem", place.folder / "device-0.key")
    with (
        socket.create_connection(("127.0.0.1", place.gateway.port), timeout=0.5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as inside,
    ):
        first = f"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n{module.KEY_HEADER}: "
        inside.sendall(first.encode() + place.key("device-0").encode() + b"\r\n" + head + rest)
        with suppress(TimeoutError):
            while inside.recv(4096):
                pass
    assert place.ask("device-1") == 200  # who comes after, over the same connection to the server
    assert {one.path for one in place.upstream.seen} == {"/v1/fleet/pull-messages"}
    assert len(place.upstream.seen) <= 2


@needs_nginx
def test_what_is_too_large_costs_its_sender(place: Place) -> None:
    assert place.ask("device-0", body=bytes(2**20)) == 200
    assert place.ask("device-0", body=bytes(2**20 + 1)) == 413
    with closing(place.connect("device-0")) as there:  # it does not say how much it is
        headers = {"flwr-public-key": place.key("device-0"), "transfer-encoding": "chunked"}
        with pytest.raises(OSError):
            there.request(
                *("POST", "/v1/fleet/push-object", (bytes(2**16) for _ in range(64)), headers),
                encode_chunked=True,
            )
            raise OSError if there.getresponse().status == 413 else AssertionError
    assert [one.size for one in place.upstream.seen] == [2**20]
    # Nothing of a body is written to the disk.
    assert [
        p for p in place.gateway.folder.rglob("*") if p.is_file() and p.stat().st_size > 9e5
    ] == []


@needs_nginx
def test_who_asks_too_often_is_slowed_and_then_refused_and_nobody_else(place: Place) -> None:
    place.gateway.reload(replace(place.federation, requests=2))
    try:
        with ThreadPoolExecutor(20) as many:
            asked = [many.submit(place.ask, "device-1") for _ in range(20)]
            assert place.ask("device-0") == 200
        answers = [one.result() for one in asked]
        assert set(answers) == {200, 503}
        assert 2 * BURST <= answers.count(200) <= 2 * BURST + 3
    finally:
        place.gateway.reload(place.federation)


@needs_nginx
def test_a_revoked_device_is_out_and_the_others_stay(place: Place) -> None:
    federation = place.federation
    revoked = place.authority.revoke([place.issued["device-1"]], place.folder / "new.pem")
    with closing(place.connect("device-1")) as before, closing(place.connect("device-0")) as other:
        headers = [{"flwr-public-key": place.key(name)} for name in ("device-1", "device-0")]
        before.request("POST", "/v1/fleet/pull-messages", b"", headers[0])
        assert before.getresponse().status == 200  # a connection that stays
        place.gateway.reload(replace(federation, revoked=str(revoked)))
        try:
            assert place.ask("device-1") == 403 and place.ask("device-0") == 200
            with pytest.raises((OSError, http.client.HTTPException, AssertionError)):
                before.request("POST", "/v1/fleet/pull-messages", b"", headers[0])
                assert before.getresponse().status == 200
            other.request("POST", "/v1/fleet/pull-messages", b"", headers[1])
            assert other.getresponse().status == 200
        finally:
            place.gateway.reload(federation)
    assert place.ask("device-1") == 200


@needs_nginx
def test_a_session_is_not_taken_up_again(place: Place) -> None:
    context = ssl.create_default_context(cafile=str(place.certificates.ca))
    context.load_cert_chain(place.folder / "device-1.pem", place.folder / "device-1.key")
    session, reused = None, []
    for _ in range(2):
        with (
            socket.create_connection(("127.0.0.1", place.gateway.port)) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as inside,
        ):
            inside.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            inside.recv(1000)
            session = inside.session
            reused.append(inside.session_reused)
    assert reused == [False, False]


def test_without_nginx_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name, path=None: None)
    with pytest.raises(ConfigError, match=r"^nginx: got None, .*; apt-get install nginx-light$"):
        nginx()


def test_the_settings_name_flowers_own_words() -> None:
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
    from flwr.supernode import fleet_http_client

    assert module.KEY_HEADER == FLEET_HTTP_PUBLIC_KEY_HEADER
    known = Path(fleet_http_client.__file__).read_text()
    assert all(f'"/v1/fleet/{call}"' in known for call in CALLS)
    # What a node of ours calls, and nothing else.
    asked = re.findall(r'self\._call\(\s*"([a-z-]+)"', Path(fleet.__file__).read_text())
    assert set(asked) == set(CALLS)
    # An empty federation lets nobody in.
    assert "default 0;\n  }" in configuration(Federation())
