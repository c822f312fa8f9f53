"""A node's side of Flower's Fleet API, spoken by the node itself.

All that is internal to Flower and this project's node needs is in this file, and nowhere else:
its eight calls, its messages on the wire, its objects. ``tests/clients/node/test_fleet.py`` names
what that is. A node so asks for no app, and none is sent to it; it opens no port; and what a
server sends is limited while it comes, in bytes and in seconds.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    HEAD_BODY_DIVIDER,
)
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from clients.node.access import Access
from fedpers.errors import FedpersError

BEAT = HEARTBEAT_DEFAULT_INTERVAL  # seconds; a node is away after two of them without a sign
CALL = 30.0  # seconds without a byte, or to connect
LITTLE = 2**16  # bytes of an answer that carries no object
TREE = 2**20  # bytes of the answer that names the objects of a message
OBJECTS, CHUNK = 1000, 2**20  # objects in a message, and one more for so many bytes
ID = 128  # bytes that name an object, at most
DEEPEST = 8  # a message, its records, one of them, an array, a chunk of it
WAIT = 0.2  # seconds until an object that is not there yet is asked for again
UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)

Answer = TypeVar("Answer", bound=Any)


class Lost(FedpersError):
    """The SuperLink cannot be reached, or answers as if it were not there."""


class Declined(FedpersError):
    """The SuperLink does not take what it was asked; ``status`` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class Beyond(FedpersError):
    """What was sent is more than a node takes, takes too long, or is no message."""


class Asked(NamedTuple):
    """A message that waits for a node, without its content.

    Attributes:
        message: its metadata; what an answer that needs no content is an answer to.
        tree: of the ids of the objects that it is made of, as it came.
    """

    message: Message
    tree: Any


class Fleet:
    """The eight calls of a node, for as long as it is joined. Safe for a thread that sends
    heartbeats beside the one that does the rest.

    Args:
        access: files are read now.

    Raises:
        ConfigError: see ``Access``.
    """

    def __init__(self, access: Access) -> None:
        self.key = access.private_key()
        self.public = public_key_to_bytes(self.key.public_key())
        self.url = access.url
        # No redirects: what is signed for one server is for nobody else.
        self.http = httpx.Client(
            verify=access.context(), timeout=CALL, follow_redirects=False, http2=False
        )
        self.node = 0

    def join(self) -> int:
        """Become a node that messages are sent to; its id.

        Raises:
            Lost, Declined: as all calls do.
        """
        asked = fleet_pb2.ActivateNodeRequest(public_key=self.public, heartbeat_interval=BEAT)
        self.node = self._call("activate-node", asked, fleet_pb2.ActivateNodeResponse).node_id
        return self.node

    def leave(self) -> None:
        """Be away, at once."""
        asked = fleet_pb2.DeactivateNodeRequest(node_id=self.node)
        self._call("deactivate-node", asked, fleet_pb2.DeactivateNodeResponse, seconds=5)

    def beat(self) -> bool:
        """Give a sign of life; whether the SuperLink knows this node."""
        asked = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._me, heartbeat_interval=BEAT)
        answer = heartbeat_pb2.SendNodeHeartbeatResponse
        return bool(self._call("send-node-heartbeat", asked, answer, seconds=5).success)

    def ask(self) -> Asked | None:
        """What waits for this node, if anything does."""
        asked = fleet_pb2.PullMessagesRequest(node=self._me)
        found = self._call("pull-messages", asked, fleet_pb2.PullMessagesResponse, TREE)
        if not found.messages_list:
            return None
        try:
            message = message_from_proto(found.messages_list[0])
            tree = found.message_object_trees[0]
        except UNREADABLE as error:
            raise Beyond(f"message: it cannot be read ({type(error).__name__})") from None
        _identify(message, tree.object_id)
        return Asked(message, tree)

    def take(self, asked: Asked, most: int, seconds: float) -> Message:
        """Fetch the content of a message, and have the SuperLink forget it.

        Args:
            most: bytes of all of it.
            seconds: for all of it.

        Raises:
            Beyond: it is larger, takes longer, is no message; or has too many objects or nests them
                too deep, and then none is fetched.
        """
        objects = tuple(_walk(asked.tree, OBJECTS + most // CHUNK))
        run, until, left = asked.message.metadata.run_id, time.monotonic() + seconds, most
        contents: dict[str, bytes] = {}
        for one in objects:
            contents[one] = self._object(run, one, left, until)
            left -= len(contents[one])
        self.drop(asked)
        try:
            _check_joined(contents, most)
            found = inflate_object_from_contents(objects[0], contents)
            if not isinstance(found, Message) or not found.has_content():
                raise TypeError(f"a {type(found).__name__} without content")
        except UNREADABLE as error:
            raise Beyond(f"message: it cannot be read ({type(error).__name__})") from None
        asked.message.content = found.content
        return asked.message

    def drop(self, asked: Asked) -> None:
        """Have the SuperLink forget what it keeps of a message for this node."""
        run, one = asked.message.metadata.run_id, asked.tree.object_id
        done = message_pb2.ConfirmMessageReceivedRequest(
            node=self._me, run_id=run, message_object_id=one
        )
        self._call("confirm-message-received", done, message_pb2.ConfirmMessageReceivedResponse)

    def answer(self, reply: Message, seconds: float) -> None:
        """Send a reply.

        Args:
            seconds: that the work took, as Flower's statistics have it.

        Raises:
            Declined: nobody waits for it any more.
        """
        _identify(reply, reply.object_id)
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            shell = remove_content_from_message(reply) if reply.has_content() else reply
            asked = fleet_pb2.PushMessagesRequest(
                node=self._me,
                messages_list=[message_to_proto(shell)],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            room = LITTLE + ID * len(objects)
            found = self._call("push-messages", asked, fleet_pb2.PushMessagesResponse, room)
            for one in set(found.objects_to_push) & set(objects):
                part = message_pb2.PushObjectRequest(
                    node=self._me,
                    run_id=reply.metadata.run_id,
                    session_id=found.session_id,
                    object_id=one,
                    object_content=objects[one].deflate(),
                )
                if not self._call("push-object", part, message_pb2.PushObjectResponse).stored:
                    raise Declined(0, "the SuperLink did not keep a part of a reply")

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    @property
    def _me(self) -> Node:
        return Node(node_id=self.node)

    def _object(self, run: int, one: str, most: int, until: float) -> bytes:
        asked = message_pb2.PullObjectRequest(node=self._me, run_id=run, object_id=one)
        while True:
            left = until - time.monotonic()
            room = max(0, most) + LITTLE
            found = self._call("pull-object", asked, message_pb2.PullObjectResponse, room, left)
            if not found.object_found:
                raise Beyond("message: a part of it is not there")
            if found.object_available:
                if len(found.object_content) > most:
                    raise Beyond("bytes: got more than its owner takes")
                return bytes(found.object_content)
            time.sleep(WAIT)

    def _call(
        self,
        name: str,
        asked: Any,
        answer: type[Answer],
        most: int = LITTLE,
        seconds: float = 4 * CALL,
    ) -> Answer:
        """One call: a protobuf message there, one of at most ``most`` bytes back in ``seconds``."""
        until, found = time.monotonic() + seconds, bytearray()
        if seconds <= 0:
            raise Beyond("time: it took too long to arrive")
        wait = min(CALL, seconds)
        try:
            with self.http.stream(
                "POST",
                f"{self.url}/{name}",
                content=asked.SerializeToString(),
                headers=self._signed(),
                timeout=wait,
            ) as response:
                if response.status_code >= 500:
                    raise Lost(f"{name}: the server answers {response.status_code}")
                for chunk in response.iter_raw():  # as it came: nothing is unpacked
                    found += chunk
                    if len(found) > most:
                        raise Beyond(f"bytes: got more than {most} to {name}")
                    if time.monotonic() > until:
                        raise Beyond(f"time: got no whole answer to {name} in {seconds:.0f} s")
        except httpx.HTTPError as error:
            raise Lost(f"{name}: {str(error) or type(error).__name__}") from error
        self.http.cookies.clear()  # none is kept, and none is sent back
        if response.status_code != 200:
            raise Declined(response.status_code, f"{name}: {_said(bytes(found))}")
        try:
            parsed: Answer = answer.FromString(bytes(found))
            return parsed
        except Exception as error:  # protobuf's own
            raise Beyond(f"{name}: it cannot be read ({type(error).__name__})") from None

    def _signed(self) -> dict[str, str]:
        at = now().isoformat()
        return {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            "accept-encoding": "identity",
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public).decode("ascii"),
            TIMESTAMP_HEADER: at,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(
                sign_message(self.key, at.encode("ascii"))
            ).decode("ascii"),
        }


def _walk(tree: Any, most: int) -> Iterator[str]:
    """The ids in a tree, each once, the root first.

    Raises:
        Beyond: there are too many, or it is too deep.
    """
    seen: set[str] = set()
    left = [(tree, 1)]
    for count in range(most + 1):
        if not left:
            return
        node, depth = left.pop()
        if count == most or depth > DEEPEST:
            raise Beyond(f"objects: got more than {most}, or deeper than {DEEPEST}")
        if node.object_id not in seen:
            seen.add(node.object_id)
            yield node.object_id
        left += [(child, depth + 1) for child in node.children]


def _check_joined(contents: Mapping[str, bytes], most: int) -> None:
    """Refuse arrays that are small as they come and large as they are put together: an array may
    name one chunk many times."""
    total = 0
    for content in contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "Array":
            body = json.loads(content.partition(HEAD_BODY_DIVIDER)[2])
            total += sum(len(contents[children[k]]) for k in body["arraychunk_ids"])
    if total > most:
        raise Beyond(f"bytes: got {total} when put together, takes at most {most}")


def _identify(message: Message, one: str) -> None:
    # Flower's own node sets it in this way; there is no public setter.
    message.metadata.__dict__["_message_id"] = one


def _said(text: bytes) -> str:
    """What a server says of a refusal: one short line that a terminal may show."""
    line = " ".join(text[:300].decode("ascii", errors="replace").split())
    return "".join(c if c.isprintable() else "?" for c in line) or "nothing"
