"""A real SuperLink behind the gateway: who may speak, and as whom."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clients.node.access import Access
from clients.node.fleet import Declined, Fleet
from simulations.devices.check_server import check_server
from simulations.devices.gateway import BRINGS, has_nginx
from simulations.devices.outsider import table, tries
from simulations.devices.rehearsal import Rehearsal, rehearsal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_nginx(), reason=f"nginx is not installed: {BRINGS}"),
]
DEVICES = ("device-0", "device-1")


@pytest.fixture(scope="module")
def closed() -> Iterator[Rehearsal]:
    with rehearsal(closed=True) as found:
        for client in DEVICES:
            found.register(client)
        found.open_gateway(DEVICES)
        yield found


def speaks(closed: Rehearsal, certificate: str, key: str) -> Fleet:
    """A node with the certificate of one and the node key of another."""
    assert closed.gateway is not None
    own, address = closed.certificate_of(certificate), f"127.0.0.1:{closed.gateway.port}"
    return Fleet(Access(address, closed.certificates.ca, closed.space.path(f"node-{key}"), *own))


def test_a_device_speaks_for_itself_alone(closed: Rehearsal) -> None:
    with (
        closing(speaks(closed, *["device-0"] * 2)) as one,
        closing(speaks(closed, *["device-1"] * 2)) as other,
    ):
        assert one.join() != other.join()
        assert one.ask() is None and one.beat()  # there is no run
        own, one.node = one.node, other.node
        for call in (one.ask, one.beat, one.leave):  # as the other node
            with pytest.raises(Declined) as refused:
                call()
            assert refused.value.status == 401
        one.node = own
        assert other.beat()
        one.leave()
        other.leave()
    for certificate, key in (("device-0", "device-1"), ("device-1", "device-0")):
        with closing(speaks(closed, certificate, key)) as impostor:
            with pytest.raises(Declined) as refused:
                impostor.join()
            assert refused.value.status == 403


def test_the_superlink_is_reached_through_the_gateway_alone(closed: Rehearsal) -> None:
    if closed.space.shares:
        pytest.skip(closed.space.shares)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", closed.port), timeout=5)
    # Nor by any other port of what runs there.
    assert closed.gateway is not None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        assert state != "0A" or int(local.split(":")[1], 16) != closed.port


def test_from_outside_nothing_is_open(closed: Rehearsal) -> None:
    assert closed.gateway is not None
    address, own = f"127.0.0.1:{closed.gateway.port}", closed.certificate_of("device-0")
    assert list(check_server(address, closed.certificates.ca, own, ports=())) == []
    called = {line.split()[3] for line in closed.gateway.calls() if line.endswith(" 200")}
    assert all(path.startswith("/v1/fleet/") for path in called)


def test_what_is_tried_gets_nowhere(closed: Rehearsal) -> None:
    """Last of all: it revokes the first device."""
    found = list(tries(closed, DEVICES, []))
    assert all(one.refused for one in found), list(table(found))
    assert sum("403" in one.answer for one in found) >= 13
