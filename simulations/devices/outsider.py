"""What somebody tries who has no business at a closed server, and what he is answered."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flwr.app import Message

from clients.node.fleet import Beyond, Declined, Fleet, Lost
from fedpers.federation import read_federation
from fedpers.records import pack
from simulations.devices.certificates import Authority, make_node_key
from simulations.devices.check_server import CONTROL, ODD, OTHER, ask, closed_door
from simulations.devices.gateway import KEY_HEADER, shown
from simulations.devices.rehearsal import Rehearsal

INTRUDER = "intruder"  # a device of the federation that says it is another
LOOK = 0.5  # seconds between two looks for messages
STRANGER = "stranger"  # in no line of the federation's file


class Try(NamedTuple):
    """One thing that was tried.

    Attributes:
        who: tried it.
        what: it was.
        answer: that came.
        refused: whether it got nowhere.
    """

    who: str
    what: str
    answer: str
    refused: bool


class Impostor:
    """A node of a registered device that says it is another's client, whatever it is asked.

    Args:
        fleet: its own side of the Fleet API, with its own key and certificate.
        claims: whose client it says it is.
    """

    def __init__(self, fleet: Fleet, claims: str) -> None:
        self.fleet, self.claims, self._stopped = fleet, claims, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Go away."""
        self._stopped.set()
        self._thread.join()
        self.fleet.close()

    def _run(self) -> None:
        body = {"clients": [self.claims], "nodes": 1, "scored": "", "held_out": []}
        self.fleet.join()
        while not self._stopped.wait(LOOK):
            with suppress(Lost, Declined, Beyond):
                self.fleet.beat()
                if (asked := self.fleet.ask()) is not None:
                    self.fleet.drop(asked)
                    self.fleet.answer(Message(pack([], body), reply_to=asked.message), 0)


def tries(rehearsed: Rehearsal, clients: Sequence[str], lines: Sequence[str]) -> Iterator[Try]:
    """What was tried at the gateway of a rehearsal, the devices' own call at last.

    Args:
        clients: those of the run, whose nodes are joined.
        lines: that the run has shown.
    """
    assert rehearsed.gateway is not None
    one, other, *_ = clients
    nobody, device = "an outsider", f"the device {one}"
    yield _at_the_superlink(rehearsed)
    yield from _paths(rehearsed, nobody, None)
    yield _old_tls(rehearsed)
    folder = rehearsed.space.path("outside")
    folder.mkdir()
    make_node_key(folder, "key")
    yield _joins(rehearsed, nobody, "join with a key of his own", None, folder / "key")
    theirs = rehearsed.space.path(f"node-{one}")
    yield _joins(rehearsed, nobody, f"join with {one}'s stolen node key", None, theirs)
    foreign = folder / "foreign.pem", folder / "foreign.key"
    Authority("fedpers rehearsal's devices").device(one, *foreign)
    yield _joins(rehearsed, nobody, "the same, and a certificate of his own", foreign, theirs)
    rehearsed.certify(STRANGER)
    own = rehearsed.certificate_of(STRANGER)
    yield _joins(rehearsed, STRANGER, "join with a certificate of ours", own, folder / "key")

    own = rehearsed.certificate_of(one)
    yield from _paths(rehearsed, device, own)
    stolen = rehearsed.space.path(f"node-{other}")
    yield _joins(rehearsed, device, f"join with {other}'s stolen node key", own, stolen)
    named = any(f"refused: it claims client {one!r}" in line for line in lines)
    answer = "refused by name" if named else "it did not come in time"
    yield Try(f"the device {INTRUDER}", f"say that it is {one}", answer, True)
    header = f"{KEY_HEADER}: {shown(read_federation(rehearsed.federation).devices[one].key)}"
    status = _status(rehearsed, own, header, "/v1/fleet/pull-messages")
    # Its certificate and key are right; the call is not signed, as the SuperLink says.
    yield Try(device, "a call of its own, to compare", f"passed on ({status})", status != "403")
    yield _revoked(rehearsed, one)


def table(found: Sequence[Try]) -> Iterator[str]:
    """The lines that show what was tried."""
    rows = [("who", "tries", "is answered"), *((t.who, t.what, t.answer) for t in found)]
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    for row in rows:
        yield "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2]])


def _at_the_superlink(rehearsed: Rehearsal) -> Try:
    what = "the SuperLink's own port"
    try:
        socket.create_connection(("127.0.0.1", rehearsed.port), timeout=5).close()
    except OSError:
        return Try("another user here", what, "no connection", True)
    answer = f"open to users of this machine: {rehearsed.space.shares}"
    return Try("another user here", what, answer, bool(rehearsed.space.shares))


def _paths(rehearsed: Rehearsal, who: str, own: tuple[Path, Path] | None) -> Iterator[Try]:
    for what, paths in (
        ("start an app, list runs and nodes, ...", CONTROL),
        ("register a key", ("/v1/control/register-node", "/v1/fleet/register-node")),
        ("take tasks, fetch code, health, docs, ...", OTHER),
        ("other spellings of paths", ODD),
    ):
        open_ = [p for p in paths if not closed_door(_ask(rehearsed, own, "", p))]
        answer = f"403 to all {len(paths)}" if not open_ else f"answered: {open_[0]}"
        yield Try(who, what, answer, not open_)


def _old_tls(rehearsed: Rehearsal) -> Try:
    assert rehearsed.gateway is not None
    context = ssl.create_default_context(cafile=str(rehearsed.certificates.ca))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with (
            socket.create_connection(("127.0.0.1", rehearsed.gateway.port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost"),
        ):
            return Try("an outsider", "TLS 1.2", "accepted", False)
    except OSError:
        return Try("an outsider", "TLS 1.2", "no connection", True)


def _joins(
    rehearsed: Rehearsal, who: str, what: str, own: tuple[Path, Path] | None, key: Path
) -> Try:
    with closing(Fleet(rehearsed.access(own, key))) as fleet:
        try:
            return Try(who, what, f"joined as node {fleet.join()}", False)
        except Declined as error:
            return Try(who, what, str(error.status), error.status == 403)
        except Lost as error:
            return Try(who, what, str(error), True)


def _revoked(rehearsed: Rehearsal, client: str) -> Try:
    assert rehearsed.gateway is not None
    federation = read_federation(rehearsed.federation)
    revoked = rehearsed.authority.revoke(
        [rehearsed.certified[client]], rehearsed.space.path("new-revoked.pem")
    )
    rehearsed.gateway.reload(replace(federation, revoked=str(revoked)))
    own = rehearsed.certificate_of(client)
    key = rehearsed.space.path(f"node-{client}")
    return _joins(rehearsed, f"the device {client}", "the same, once revoked", own, key)


def _ask(rehearsed: Rehearsal, own: tuple[Path, Path] | None, header: str, path: str) -> bytes:
    assert rehearsed.gateway is not None
    context = ssl.create_default_context(cafile=str(rehearsed.certificates.ca))
    if own is not None:
        context.load_cert_chain(*own)
    return ask("127.0.0.1", rehearsed.gateway.port, context, "POST", path, header)


def _status(rehearsed: Rehearsal, own: tuple[Path, Path], header: str, path: str) -> str:
    return _ask(rehearsed, own, header, path).split(b" ")[1].decode()
