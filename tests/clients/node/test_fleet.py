"""A node's side of the Fleet API, against a SuperLink that answers what it likes."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from links import Link, asked, content, link

from clients.node import fleet as module
from clients.node.fleet import OBJECTS, Asked, Beyond, Declined, Fleet, Lost
from fedpers.errors import ConfigError
from simulations.devices.certificates import make_certificates

MOST = 2**20


def made(kind: str = "train", size: int = 100) -> Message:
    """A message as a SuperLink has it, with ``size`` bytes in an array."""
    array = Array("uint8", (size,), "some", bytes(k % 251 for k in range(size)))
    records = {"parts": ArrayRecord({"a": array}), "message": ConfigRecord({"body": "{}"})}
    known = Metadata(1, "", 1, 7, "", "1", time.time(), 3600.0, kind)
    return make_message(known, RecordDict(records))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Link]:
    with link(tmp_path / "link") as found:
        yield found


@pytest.fixture
def fleet(server: Link) -> Iterator[Fleet]:
    found = Fleet(server.access)
    yield found
    found.close()


def waiting(fleet: Fleet) -> Asked:
    found = fleet.ask()
    assert found is not None
    return found


USED = """
flwr.app: Message
flwr.app.message: remove_content_from_message
flwr.common.constant: HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_HEADER
flwr.common.serde: message_from_proto, message_to_proto
flwr.proto: fleet_pb2, heartbeat_pb2, message_pb2
flwr.proto.node_pb2: Node
flwr.supercore.constant: FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
flwr.supercore.constant: HEAD_BODY_DIVIDER
flwr.supercore.date: now
flwr.supercore.inflatable.inflatable_object: get_all_nested_objects
flwr.supercore.inflatable.inflatable_object: get_object_head_values_from_object_content
flwr.supercore.inflatable.inflatable_object: get_object_tree, no_object_id_recompute
flwr.supercore.inflatable.inflatable_utils: inflate_object_from_contents
flwr.supercore.primitives.asymmetric: public_key_to_bytes, sign_message
flwr.supercore.protobuf.constants: PROTOBUF_MEDIA_TYPE
"""


def test_what_it_uses_of_flower_is_known_and_nobody_else_uses_it() -> None:
    """Where a newer flwr moves something, this file and the module are all there is to mend."""
    lines = (line.partition(": ") for line in USED.strip().splitlines())
    known = {(where, name) for where, _, names in lines for name in names.split(", ")}
    assert set(imported(Path(module.__file__))) == known
    public = ("flwr.app", "flwr.clientapp", "flwr.common.constant")
    for path in Path(module.__file__).parents[1].rglob("*.py"):
        if path != Path(module.__file__):
            assert {where for where, _ in imported(path)} <= set(public), path


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports from Flower."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr"):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("flwr") for alias in node.names), path


# -- honest servers ------------------------------------------------------------------------------


def test_a_message_and_its_reply(server: Link, fleet: Fleet) -> None:
    server.headers["set-cookie"] = "who=7"
    assert fleet.join() == 7 and fleet.beat() and fleet.ask() is None
    assert not fleet.http.cookies
    server.asks(made(size=3000))
    message = fleet.take(waiting(fleet), MOST, 10)
    assert message.content.array_records["parts"]["a"].data == bytes(k % 251 for k in range(3000))
    assert message.metadata.message_type == "train" and message.metadata.message_id
    fleet.answer(Message(RecordDict({"m": ConfigRecord({"x": 1})}), reply_to=message), 0.5)
    (pushed,) = server.replies
    assert pushed.messages_list[0].metadata.reply_to_message_id == message.metadata.message_id
    fleet.leave()
    assert "get-fab" not in server.calls and "register-node" not in server.calls


def test_an_object_that_comes_later(server: Link, fleet: Fleet) -> None:
    server.asks(made())
    there, times = server.answers["pull-object"], []

    def later(wanted: bytes) -> bytes:
        times.append(1)
        missing = PullObjectResponse(object_found=True, object_available=False)
        return bytes(missing.SerializeToString()) if len(times) < 3 else there(wanted)  # type: ignore[return-value]

    server.answers["pull-object"] = later
    assert fleet.take(waiting(fleet), MOST, 10).has_content()


# -- servers that send too much ------------------------------------------------------------------


def test_too_many_objects_are_not_even_asked_for(server: Link, fleet: Fleet) -> None:
    message = made()
    wide = ObjectTree(object_id="a" * 64)
    wide.children.extend([ObjectTree(object_id=f"{k:064d}") for k in range(OBJECTS + 10)])
    same = ObjectTree(object_id="a" * 64)
    same.children.extend([ObjectTree(object_id="b" * 64)] * (OBJECTS + 10))
    deep = ObjectTree(object_id="a" * 64)
    for _ in range(10):
        deep = ObjectTree(object_id="b" * 64, children=[deep])
    for tree in (wide, same, deep):
        server.answers["pull-messages"] = lambda _, tree=tree: asked(
            message_to_proto(message), tree
        )
        found = waiting(fleet)
        with pytest.raises(Beyond, match="objects: got more than"):
            fleet.take(found, 1000, 10)
    assert "pull-object" not in server.calls


def test_a_tree_of_a_million_objects_is_not_read_to_its_end(server: Link, fleet: Fleet) -> None:
    sent = [0]

    def pieces() -> Iterator[bytes]:
        for _ in range(10**6):
            sent[0] += 1
            yield b"\x12\x42\x0a\x40" + b"c" * 64

    server.answers["pull-messages"] = lambda _: pieces()
    with pytest.raises(Beyond, match="bytes: got more than 1048576 to pull-messages"):
        fleet.ask()
    assert sent[0] < 200_000  # what lay in buffers


def test_a_tree_so_deep_that_it_cannot_be_read(server: Link, fleet: Fleet) -> None:
    nested = b""
    for _ in range(300):
        size = len(nested)
        varint = bytes([size & 127 | 128, size >> 7]) if size > 127 else bytes([size])
        nested = b"\x12" + varint + nested
    told = b"\x1a" + bytes([len(nested) & 127 | 128, len(nested) >> 7]) + nested
    server.answers["pull-messages"] = lambda _: told
    with pytest.raises(Beyond):
        assert fleet.ask() is None
        raise Beyond("nothing was taken of it")


def test_an_object_that_is_larger_than_it_says(server: Link, fleet: Fleet) -> None:
    server.asks(made(size=10))
    found, sent = waiting(fleet), [0]

    def pieces() -> Iterator[bytes]:
        for _ in range(10**5):
            sent[0] += 1
            yield bytes(2**16)

    server.answers["pull-object"] = lambda _: pieces()
    with pytest.raises(Beyond, match="bytes: got more than"):
        fleet.take(found, MOST, 10)
    assert sent[0] < 1000
    server.asks(made(size=10))
    server.answers["pull-object"] = lambda _: content(b"ArrayChunk  3\0" + bytes(5000))
    with pytest.raises(Beyond, match="bytes: got more than its owner takes"):
        fleet.take(waiting(fleet), 4000, 10)


def test_many_objects_that_are_large_together(server: Link, fleet: Fleet) -> None:
    server.asks(made(size=4000))
    with pytest.raises(Beyond, match="bytes: got more than its owner takes"):
        fleet.take(waiting(fleet), 4000, 10)


def test_an_array_that_names_a_chunk_many_times(server: Link, fleet: Fleet) -> None:
    described = b'{"dtype":"uint8","shape":[1],"stype":"some","arraychunk_ids":[%s]}'
    data = {
        "m": b"Message r 0\0",
        "r": b'RecordDict s 12\0{"parts":"s"}',
        "s": b'ArrayRecord t 9\0{"a":"t"}',
        "t": b"Array u 100\0" + described % b",".join([b"0"] * 5000),
        "u": b"ArrayChunk  1000\0" + bytes(1000),
    }
    tree = ObjectTree(object_id="m")
    below = tree
    for name in "rstu":
        below.children.append(ObjectTree(object_id=name))
        below = below.children[0]
    server.answers["pull-messages"] = lambda _: asked(message_to_proto(made()), tree)
    server.answers["pull-object"] = lambda body: content(
        next(part for name, part in data.items() if f"\x01{name}".encode() in body)
    )
    with pytest.raises(Beyond, match="bytes: got 50"):
        fleet.take(waiting(fleet), 100_000, 10)


def test_what_is_packed_is_not_unpacked(server: Link, fleet: Fleet) -> None:
    import gzip

    server.asks(made())
    found = waiting(fleet)
    server.headers["content-encoding"] = "gzip"
    server.answers["pull-object"] = lambda _: gzip.compress(bytes(2**26))
    with pytest.raises(Beyond, match="cannot be read"):
        fleet.take(found, MOST, 10)


def test_a_server_that_never_ends(server: Link, fleet: Fleet) -> None:
    server.asks(made())
    found = waiting(fleet)

    def drops() -> Iterator[bytes]:
        while True:
            time.sleep(0.05)
            yield b"\x00"

    server.answers["pull-object"] = lambda _: drops()
    began = time.monotonic()
    with pytest.raises(Beyond, match="time: "):
        fleet.take(found, MOST, 0.5)
    assert time.monotonic() - began < 2
    never = PullObjectResponse(object_found=True, object_available=False).SerializeToString()
    server.answers["pull-object"] = lambda _: never
    with pytest.raises(Beyond, match="time: "):
        fleet.take(found, MOST, 0.5)


GARBAGE = (b"", b"x", b"\0", b"Array", b"Array  3\0abc", b"os  0\0", b"Message r x\0", b"\xff" * 99)


@pytest.mark.parametrize("data", GARBAGE)
def test_what_is_no_message(server: Link, fleet: Fleet, data: bytes) -> None:
    server.asks(made())
    found = waiting(fleet)
    server.answers["pull-object"] = lambda _: content(data)
    with pytest.raises(Beyond, match="cannot be read"):
        fleet.take(found, MOST, 10)


def test_a_type_that_is_none(server: Link, fleet: Fleet) -> None:
    for kind in ("", "os.abort", "train.", "\x1b[2J"):
        message = message_to_proto(made())
        message.metadata.message_type = kind
        server.answers["pull-messages"] = lambda _, m=message: asked(m, ObjectTree(object_id="a"))
        with pytest.raises(Beyond, match="message: it cannot be read"):
            fleet.ask()


# -- who is there --------------------------------------------------------------------------------


def test_no_answer_an_error_and_another_server(server: Link, fleet: Fleet, tmp_path: Path) -> None:
    server.answers["activate-node"] = lambda _: (401, b"\x1b[31mno\nnode " + b"x" * 10**6)
    with pytest.raises(Beyond, match="bytes"):
        fleet.join()
    server.answers["activate-node"] = lambda _: (401, b"\x1b[31mno\nnode")
    with pytest.raises(Declined, match=r"activate-node: \?\[31mno node") as refused:
        fleet.join()
    assert refused.value.status == 401
    server.answers["activate-node"] = lambda _: (503, b"")
    with pytest.raises(Lost, match="503"):
        fleet.join()
    server.headers["location"] = "https://example.org/"
    server.answers["activate-node"] = lambda _: (307, b"")
    with pytest.raises(Declined):
        fleet.join()
    (tmp_path / "other").mkdir()
    other = replace(server.access, root_certificates=make_certificates(tmp_path / "other").ca)
    with pytest.raises(Lost, match="certificate verify failed"):
        Fleet(other).join()
    with pytest.raises(Lost):
        Fleet(replace(server.access, server="127.0.0.1:1")).join()


def test_a_server_that_asks_for_a_certificate(tmp_path: Path) -> None:
    own, key = client_certificate(tmp_path)
    with link(tmp_path / "link", client_ca=own) as server:
        with pytest.raises(Lost):
            Fleet(server.access).join()
        assert Fleet(replace(server.access, certificate=own, certificate_key=key)).join() == 7
        assert server.calls == ["activate-node"]


def client_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    start = datetime.now(UTC) - timedelta(hours=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "own.crt", folder / "own.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return certificate, secret


def test_files_of_an_access(server: Link, tmp_path: Path) -> None:
    def refused(why: str, **files: Path) -> None:
        with pytest.raises(ConfigError, match=why):
            Fleet(replace(server.access, **files))

    none, key = tmp_path / "none", server.access.key
    refused("--root-certificates: got .*No such file", root_certificates=none)
    refused("--root-certificates: got .*certificates in PEM", root_certificates=key)
    refused("--key: got .*No such file", key=none)
    refused("takes --certificate and --certificate-key, or none", certificate=none)
    refused("--certificate: got .*No such file", certificate=none, certificate_key=none)
    other = tmp_path / "ed25519"
    other.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    refused("--key: got '0o644', takes a file with mode 0600; chmod 600", key=other)
    other.chmod(0o600)
    refused("takes an elliptic key", key=other)
    other.write_bytes(b"no key")
    refused("--key: got .*takes an elliptic key", key=other)
    for address in ("", "example.org", "https://example.org:9092", "a:b", "a:1/x", "me@a:1"):
        with pytest.raises(ConfigError, match=r"--server: got .*, takes HOST:PORT"):
            Fleet(replace(server.access, server=address))
