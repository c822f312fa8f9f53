"""A SuperLink of a test's own on loopback, that answers a node's calls with anything."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from clients.node.access import Access
from simulations.devices.certificates import Certificates, make_certificates, make_node_key

Said = bytes | tuple[int, bytes] | Iterable[bytes]
"""A body; a status and a body; or a body in pieces, of which nobody knows how many come."""


@dataclass
class Link:
    """What it answers by call; ``calls`` has the names of those that came, ``replies`` what nodes
    pushed."""

    access: Access
    certificates: Certificates
    answers: dict[str, Callable[[bytes], Said]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    replies: list[fleet_pb2.PushMessagesRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        ok = message_pb2.PushObjectResponse(stored=True)
        joined = fleet_pb2.ActivateNodeResponse(node_id=7)
        alive = heartbeat_pb2.SendNodeHeartbeatResponse(success=True)
        for name, said in (
            ("activate-node", joined),
            ("deactivate-node", fleet_pb2.DeactivateNodeResponse()),
            ("send-node-heartbeat", alive),
            ("pull-messages", fleet_pb2.PullMessagesResponse()),
            ("confirm-message-received", message_pb2.ConfirmMessageReceivedResponse()),
            ("push-object", ok),
        ):
            self.answers[name] = lambda _, said=said: said.SerializeToString()
        self.answers["push-messages"] = self._pushed

    def _pushed(self, asked: bytes) -> bytes:
        self.replies.append(fleet_pb2.PushMessagesRequest.FromString(asked))
        return fleet_pb2.PushMessagesResponse().SerializeToString()

    def asks(self, *messages: Message) -> None:
        """Have these messages waiting, one after another, with all that belongs to them."""
        waiting, contents = list(messages), {}
        for message in messages:
            contents.update({k: o.deflate() for k, o in get_all_nested_objects(message).items()})

        def pull(_: bytes) -> bytes:
            if not waiting:
                return b""
            one = waiting.pop(0)
            return asked(message_to_proto(one), get_object_tree(one))

        def take(wanted: bytes) -> bytes:
            name = message_pb2.PullObjectRequest.FromString(wanted).object_id
            return content(contents[name]) if name in contents else b""  # it is not there

        self.answers.update({"pull-messages": pull, "pull-object": take})


def asked(message: Any, tree: message_pb2.ObjectTree) -> bytes:
    """The answer that has a message waiting, of the objects of a tree."""
    told = fleet_pb2.PullMessagesResponse(messages_list=[message], message_object_trees=[tree])
    return bytes(told.SerializeToString())


def content(data: bytes) -> bytes:
    """The answer that has an object."""
    told = message_pb2.PullObjectResponse(
        object_found=True, object_available=True, object_content=data
    )
    return bytes(told.SerializeToString())


@contextmanager
def link(folder: Path, *, client_ca: Path | None = None) -> Iterator[Link]:
    """Such a SuperLink, and a node's way to it.

    Args:
        client_ca: who signed the certificates that it asks its clients for.
    """
    folder.mkdir()
    certificates = make_certificates(folder)
    key, _ = make_node_key(folder, "node")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            name = self.path.removeprefix("/v1/fleet/")
            body = self.rfile.read(int(self.headers["content-length"]))
            made.calls.append(name)
            said = made.answers[name](body)
            status, whole = said if isinstance(said, tuple) else (200, said)
            self.send_response(status)
            for header, value in made.headers.items():
                self.send_header(header, value)
            if isinstance(whole, bytes):
                self.send_header("content-length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole)
                return
            self.send_header("connection", "close")
            self.end_headers()
            with suppress(OSError):  # a node that has enough closes
                for piece in whole:
                    self.wfile.write(piece)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificates.server, certificates.server_key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    access = Access(f"127.0.0.1:{server.server_address[1]}", certificates.ca, key)
    made = Link(access, certificates)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
