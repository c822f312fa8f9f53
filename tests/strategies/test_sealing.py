"""A server of sealed updates, in front of toy nodes that seal, some of them badly."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.node.sealing import Sealer
from fedpers.channels.sealed import (
    ClientCipher,
    KeyPair,
    client_from,
    generate,
    parameters_for,
    server_from,
)
from fedpers.channels.sealed.guard import frame, unframe
from fedpers.channels.sealed.sealed_parts import MAGIC, Group, SealedParts, open_parts, seal_parts
from fedpers.config import load_config
from fedpers.errors import ConfigError, FedpersError, RunError
from fedpers.parts import Layout, Part, Parts
from fedpers.privacy.noise import known
from fedpers.records import pack, unpack
from simulations.backends.serial import SerialGrid, _identity
from strategies.exchange import send_and_receive

HOSTS = (("1", "2"), ("3",), ("4",))
Spoil = Callable[[SealedParts], Any]


@cache
def pair(scheme: str, which: int) -> KeyPair:
    return generate(parameters_for(scheme, 8, rows=scheme == "ckks"))


class Raw(SealedParts):
    """Bytes that are sent in the place of sealed parts."""

    def to_bytes(self) -> bytes:
        return self.data  # type: ignore[attr-defined, no-any-return]


def raw(data: bytes) -> Raw:
    made = Raw({}, (), ())
    made.__dict__["data"] = data
    return made


class SealingNodes(SerialGrid):
    """Nodes whose clients send parts that are all their number, and have as many examples.

    Args:
        spoils: by client, what it makes of its sealed parts; by node, of its whole reply.
        keys: by node, another key than the others'.
    """

    def __init__(
        self,
        scheme: str,
        hosts: Sequence[Sequence[str]] = HOSTS,
        spoils: Mapping[str | int, Any] | None = None,
        keys: Mapping[int, int] | None = None,
    ) -> None:
        self.hosts, self.spoils = [list(clients) for clients in hosts], dict(spoils or {})
        self.pairs = [pair(scheme, (keys or {}).get(node, 0)) for node in range(len(hosts))]
        self.cipher: ClientCipher = client_from(pair(scheme, 0).client)
        self.heads: dict[str, torch.Tensor] = {}
        self.opens: Any = None  # what nodes say that they opened, by node; None: what it is
        self.weighs: Any = None  # the same of the similarities
        app = ClientApp()
        app.query("roster")(self._roster)
        app.train()(self._train)
        app.train("seal")(self._seal)
        app.query("open")(self._open)
        app.query("similarity")(self._similarity)
        super().__init__(app, nodes=len(self.hosts))

    def _roster(self, message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        made = self.pairs[node]
        key = {"id": made.key_id, "context": base64.b64encode(made.server).decode()}
        body = {"clients": self.hosts[node], "nodes": len(self.hosts), "scored": "toy", "key": key}
        return Message(pack([], body), reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        rows, body = unpack(message.content)
        sealing, uploads = body["sealing"], []
        layouts = {n: p.layout for row in rows for n, p in open_any(self.cipher, row).items()}
        for client in body["clients"]:
            parts = {n: Part(x, torch.full((x.size,), float(client))) for n, x in layouts.items()}
            for names, _ in sealing["groups"]:
                parts |= {n: self._derived(n, client) for n in names if n not in parts}
            if client in self.heads:
                parts["unit"] = Part.of({"rows": self.heads[client]})
            if sealing["seal_at_once"]:
                weight = body.get("weights", {}).get(client, 1.0)
                uploads.append(self._sealed(client, Parts(parts), sealing, weight))
            else:
                self.layouts = layouts
        reports = {c: {"examples": int(c), "loss": 0.5} for c in body["clients"]}
        return self._reply(message, context, uploads, {"reports": reports})

    def _derived(self, name: str, client: str) -> Part:
        if name == "logits":
            return Part.of({"logits": torch.full((50, 2), float(client))})
        return Part.of({"rows": torch.ones(2, 2) / 2**0.5})

    def _seal(self, message: Message, context: Context) -> Message:
        _, body = unpack(message.content)
        uploads = []
        for client in body["clients"]:
            parts = {
                n: Part(x, torch.full((x.size,), float(client))) for n, x in self.layouts.items()
            }
            weight = body["weights"][client]
            uploads.append(self._sealed(client, Parts(parts), body["sealing"], weight))
        return self._reply(message, context, uploads, {})

    def _sealed(
        self, client: str, parts: Parts, sealing: Mapping[str, Any], weight: float
    ) -> SealedParts:
        groups = [Group.from_json(group) for group in sealing["groups"]]
        source = known(int(client))()
        sealed = seal_parts(self.cipher, parts, groups, range=8.0, weight=weight, source=source)
        return self.spoils.get(client, lambda found: found)(sealed)  # type: ignore[no-any-return]

    def _reply(
        self, message: Message, context: Context, rows: Sequence[Any], body: dict[str, Any]
    ) -> Message:
        content = pack(rows, {"failures": {}, "seconds": 0.1, **body})
        spoil = self.spoils.get(int(context.node_config["partition-id"]))
        if spoil is not None and rows:
            spoil(content)
        return Message(content, reply_to=message)

    def _open(self, message: Message, context: Context) -> Message:
        ((row,), _) = unpack(message.content)
        node = int(context.node_config["partition-id"])
        assert isinstance(row, SealedParts)
        answer = self.opens(node, row) if self.opens else open_parts(self.cipher, row)
        return Message(pack([answer], {}), reply_to=message)

    def _similarity(self, message: Message, context: Context) -> Message:
        _, body = unpack(message.content)
        rows = {client: [1.0] * body["of"] for client in body["clients"]}
        if self.weighs is not None:
            rows = self.weighs(int(context.node_config["partition-id"]), rows)
        return Message(pack([], {"rows": rows}), reply_to=message)


def open_any(cipher: ClientCipher, row: Any) -> Parts:
    return row if isinstance(row, Parts) else open_parts(cipher, row)


class Server:
    """A strategy with sealing in front of its nodes."""

    def __init__(self, strategy: Any, grid: SealingNodes) -> None:
        self.strategy, self.grid = strategy, grid
        strategy.roster.refresh(grid, pack([], strategy.header()), timeout=0.05)
        strategy.sealing.open(grid, strategy.roster.keys)

    def train(self, server_round: int = 1) -> dict[str, str]:
        """One round; who was left out, and why."""
        messages = self.strategy.configure_train(
            server_round, ArrayRecord(), ConfigRecord(), self.grid
        )
        replies = send_and_receive(self.grid, list(messages), timeout=0.05)
        self.strategy.aggregate_train(server_round, replies)
        return dict(self.strategy.answers.failures)

    def mean(self) -> float:
        """The value that all global parts have, by the clients' key."""
        parts = open_any(self.grid.cipher, self.strategy.parts)
        vector = torch.cat([part.vector for part in parts.values()])
        assert float(vector.max() - vector.min()) < 1e-3
        return float(vector.mean())


@pytest.fixture
def seal(bind: Callable[..., Any]) -> Iterator[Callable[..., Server]]:
    """``seal("fedavg", scheme="bfv", spoils={"1": raw_bytes})``."""

    def seal(
        name: str, *overrides: str, scheme: str = "bfv", spoils: Any = None, **more: Any
    ) -> Server:
        settings = ["encryption.enabled=true", f"encryption.scheme={scheme}", *overrides]
        return Server(bind(name, *settings), SealingNodes(scheme, spoils=spoils, **more))

    with _identity(run_id=1):
        yield seal


# By weights: after the reports (sealed in a second message), at once, by row.
PATHS = [("fedavg", "bfv"), ("fedavg", "ckks"), ("perada", "bfv"), ("pfedsim", "ckks")]
SLOW_BUT_ONE = [PATHS[0], *(pytest.param(*path, marks=pytest.mark.slow) for path in PATHS[1:])]
MEANS = {
    "fedavg": [],
    "perada": ["strategy.params.distill=false"],
    "pfedsim": ["strategy.params.rho=1", "rounds=100000"],
}


def expected(name: str, clients: Sequence[int]) -> float:
    """Equal weights, or by examples, of which each client has its number."""
    weights = [1 if name == "perada" else client for client in clients]
    return sum(w * c for w, c in zip(weights, clients, strict=True)) / sum(weights)


@pytest.mark.parametrize(("name", "scheme"), PATHS)
def test_sums_by_hand(seal: Any, name: str, scheme: str) -> None:
    server = seal(name, *MEANS[name], scheme=scheme)
    assert server.train() == {}
    assert server.mean() == pytest.approx(expected(name, [1, 2, 3, 4]), abs=2e-4)


def test_known_numbers_of_examples_save_the_second_message(seal: Any) -> None:
    server, asked = seal("fedavg"), list[str]()
    push = server.grid.push_messages

    def noted(messages: Any) -> Any:
        messages = list(messages)
        asked.extend(message.metadata.message_type for message in messages)
        # A node is told the weights of its own clients only.
        for message in messages:
            _, body = unpack(message.content)
            assert set(body.get("weights", {})) <= set(body["clients"])
        return push(messages)

    server.grid.push_messages = noted
    assert server.train(1) == {} and "train.seal" in asked
    asked.clear()
    assert server.train(2) == {} and set(asked) == {"train"}
    assert server.mean() == pytest.approx(expected("fedavg", [1, 2, 3, 4]), abs=2e-4)
    # Without one of them, whose weight was counted on, the others' mean is right.
    server.grid.spoils["4"] = empty
    assert set(server.train(3)) == {"4"}
    assert server.mean() == pytest.approx(expected("fedavg", [1, 2, 3]), abs=2e-4)


# -- what is left out, by name ---------------------------------------------------------------------


def flipped(sealed: SealedParts) -> Any:
    data = bytearray(sealed.to_bytes())
    data[len(data) // 2] ^= 1
    return raw(bytes(data))


def empty(sealed: SealedParts) -> Any:
    return raw(b"")


def reframed(sealed: SealedParts, changes: Mapping[str, Any]) -> SealedParts:
    """With another header of the first vector, and digests as they should be."""
    header, chunks = unframe(b"FPSEAL1\n", sealed.blobs[0])
    blob = frame(b"FPSEAL1\n", {**header, **changes}, chunks)
    return SealedParts(sealed.layouts, sealed.groups, (blob, *sealed.blobs[1:]))


def foreign(sealed: SealedParts) -> Any:
    return reframed(sealed, {"key_id": "0123456789abcdef"})


def another_size(sealed: SealedParts) -> Any:
    return reframed(sealed, {"size": 5})


def another_range(sealed: SealedParts) -> Any:
    return reframed(sealed, {"range": 1e6})


def counts_double(sealed: SealedParts) -> Any:
    return reframed(sealed, {"kind": "sum", "terms": 2, "weight": 2.0})


def malformed(sealed: SealedParts, blob: int = 0) -> Any:
    """A coefficient that is not below the modulus, which only who adds it will see."""
    header, chunks = unframe(b"FPSEAL1\n", sealed.blobs[blob])
    made = frame(b"FPSEAL1\n", header, [b"\xff" * 7 + chunks[0][7:], *chunks[1:]])
    blobs = list(sealed.blobs)
    blobs[blob] = made
    return SealedParts(sealed.layouts, sealed.groups, tuple(blobs))


def malformed_head(sealed: SealedParts) -> Any:
    return malformed(sealed, len(sealed.blobs) - 1)


def divided(sealed: SealedParts) -> Any:
    return SealedParts(sealed.layouts, sealed.groups, sealed.blobs, divisor=0.001)


def other_layouts(sealed: SealedParts) -> Any:
    layouts = {n: Layout((("w", (x.size,)),)) for n, x in sealed.layouts.items()}
    return SealedParts(layouts, sealed.groups, sealed.blobs)


def other_groups(sealed: SealedParts) -> Any:
    groups = (Group(tuple(reversed(sealed.groups[0].names)), True), *sealed.groups[1:])
    layouts = {n: sealed.layouts[n] for group in groups for n in group.names}
    return SealedParts(layouts, groups, sealed.blobs)


def in_the_open(sealed: SealedParts) -> Any:
    return Parts({n: Part(x, torch.zeros(x.size)) for n, x in sealed.layouts.items()})


SPOILS: list[tuple[Spoil, str]] = [
    (flipped, "update: sealed parts: cannot be read (digest"),
    (empty, "update: sealed parts: cannot be read (length"),
    (foreign, "update: sealed: key id: got 0123456789abcdef"),
    (another_size, "update: got 5 values in"),
    (another_range, "update: got range 1e+06, takes 8"),
    (counts_double, "update: sealed: kind: got sum"),
    (malformed, "update: sealed: chunk 0: coefficient"),
    (divided, "update: got divisor 0.001, takes 1"),
    (other_layouts, "update: got other parts than"),
    (other_groups, "update: got other parts than"),
    (in_the_open, "update: got plain parts, takes sealed ones"),
]


@pytest.mark.parametrize(("spoil", "reason"), SPOILS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize(("name", "scheme"), SLOW_BUT_ONE)
def test_a_broken_update_costs_its_client_alone(
    seal: Any, name: str, scheme: str, spoil: Spoil, reason: str
) -> None:
    # A node of one client: plain parts and sealed ones do not go into one message.
    server = seal(name, *MEANS[name], scheme=scheme, spoils={"3": spoil})
    failures = server.train()
    assert list(failures) == ["3"] and failures["3"].startswith(reason), failures
    assert server.mean() == pytest.approx(expected(name, [1, 2, 4]), abs=2e-4)


@pytest.mark.parametrize("spoil", [flipped, foreign, malformed, other_layouts])
@pytest.mark.parametrize(("name", "scheme"), SLOW_BUT_ONE)
def test_it_does_not_cost_the_others_of_its_node(
    seal: Any, name: str, scheme: str, spoil: Spoil
) -> None:
    server = seal(name, *MEANS[name], scheme=scheme, spoils={"1": spoil})
    assert list(server.train()) == ["1"]
    assert server.mean() == pytest.approx(expected(name, [2, 3, 4]), abs=2e-4)


def test_a_malformed_head_is_found_before_it_is_compared(seal: Any) -> None:
    server = seal(
        "pfedsim",
        "strategy.params.rho=0.25",
        "rounds=4",
        scheme="ckks",
        spoils={"3": malformed_head},
    )
    failures = server.train()
    assert failures == {"3": failures["3"]} and "coefficient" in failures["3"]
    assert sorted(server.strategy.models) == ["1", "2", "4"]


def no_arrays(content: RecordDict) -> None:
    del content["parts"]


def no_message(content: RecordDict) -> None:
    del content["message"]


def body_of(text: str) -> Callable[[RecordDict], None]:
    def write(content: RecordDict) -> None:
        content.config_records["message"]["body"] = text

    return write


def one_too_many(content: RecordDict) -> None:
    content.config_records["message"]["sealed"] = 3


def one_too_few(content: RecordDict) -> None:
    content.config_records["message"]["sealed"] = 1


def another_type(content: RecordDict) -> None:
    arrays = content.array_records["parts"]
    arrays["0"] = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"x")


WHOLE = [no_arrays, no_message, one_too_many, one_too_few, another_type]
WHOLE += [body_of("["), body_of("[" * 100_000), body_of("[]"), body_of("9" * 5000)]


@pytest.mark.parametrize("spoil", WHOLE)
@pytest.mark.parametrize("name", ["fedavg", "perada"])
def test_a_message_that_cannot_be_read_costs_its_nodes_clients(
    seal: Any, name: str, spoil: Any
) -> None:
    server = seal(name, *MEANS[name], spoils={0: spoil})
    assert sorted(server.train()) == ["1", "2"]
    assert server.mean() == pytest.approx(expected(name, [3, 4]), abs=2e-4)


def test_a_round_without_any_good_update_fails_in_one_line(seal: Any) -> None:
    spoils = dict.fromkeys("1234", malformed)
    with pytest.raises(RunError, match=r"^no update can be added: .*coefficient"):
        seal("fedavg", spoils=spoils).train()


def test_what_comes_before_it_is_asked_for_is_not_mixed(seal: Any) -> None:
    """A node that seals with its training, where weights are not known yet."""
    server = seal("fedavg")
    train = server.grid._train

    def eager(message: Message, context: Context) -> Message:
        content = message.content
        _, body = unpack(content)
        body["sealing"]["seal_at_once"] = True
        content.config_records["message"]["body"] = json.dumps(body)
        return train(message, context)

    server.grid.layouts = dict(server.strategy.layouts)
    app = ClientApp()
    app.train()(eager)
    app.train("seal")(server.grid._seal)
    server.grid.app = app
    assert server.train() == {}
    assert server.mean() == pytest.approx(expected("fedavg", [1, 2, 3, 4]), abs=2e-4)


# -- nodes that lie in their answers ---------------------------------------------------------------


def test_a_mean_is_opened_by_the_next_node_if_one_opens_something_else(seal: Any) -> None:
    server = seal("perada", "strategy.params.kd_steps=1")
    asked = []

    def opens(node: int, row: SealedParts) -> Any:
        asked.append(node)
        good = open_parts(server.grid.cipher, row)
        nan = {n: p.like(torch.full_like(p.vector, torch.nan)) for n, p in good.items()}
        return [row, Parts(nan), good][node]

    server.grid.opens = opens
    server.train()
    assert asked == [0, 1, 2] and isinstance(server.strategy.parts, Parts)
    server.grid.opens = lambda node, row: row
    with pytest.raises(RunError, match="no node could open a mean"):
        server.train(2)


def test_the_update_of_a_single_client_is_not_opened_for_the_server(seal: Any) -> None:
    spoils = dict.fromkeys("123", foreign)
    server = seal("perada", spoils=spoils)
    server.grid.opens = lambda node, row: pytest.fail("it was asked for")
    before = server.strategy.parts
    assert sorted(server.train()) == ["1", "2", "3"]
    assert server.strategy.parts is before


@pytest.mark.parametrize(
    "row", [[1.0], "1234", None, [1.0, 1.0, 1.0, float("nan")], [1, 1, 1, -1], [0.0] * 4, [2.0] * 4]
)
def test_similarities_that_are_none_cost_their_node_alone(seal: Any, row: Any) -> None:
    server = seal("pfedsim", "strategy.params.rho=0.25", "rounds=4", scheme="ckks")
    server.grid.weighs = lambda node, rows: {**rows, "3": row} if node == 1 else rows
    server.train()
    assert sorted(server.strategy.rows) == ["1", "2", "4"]
    opened = open_parts(server.grid.cipher, server.strategy.rows["1"])
    assert float(opened["body"].vector.mean()) == pytest.approx(2.5, abs=1e-4)
    assert float(opened["head"].vector.mean()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("answer", [{}, [], "x", None])
def test_a_round_without_similarities_changes_no_row(seal: Any, answer: Any) -> None:
    server = seal("pfedsim", "strategy.params.rho=0.25", "rounds=4", scheme="ckks")
    server.grid.weighs = lambda node, rows: answer
    server.train()
    assert server.strategy.rows == {}
    assert server.mean() == pytest.approx(3.0, abs=1e-4)


def test_a_node_speaks_for_its_own_clients_only(seal: Any) -> None:
    server = seal("pfedsim", "strategy.params.rho=0.25", "rounds=4", scheme="ckks")
    everybody = {client: [1.0, 0.0, 0.0, 0.0] for client in "1234"}
    server.grid.weighs = lambda node, rows: everybody if node == 2 else rows
    server.train()
    values = {c: open_parts(server.grid.cipher, r) for c, r in server.strategy.rows.items()}
    bodies = {client: float(parts["body"].vector.mean()) for client, parts in values.items()}
    assert bodies == pytest.approx({"1": 2.5, "2": 2.5, "3": 2.5, "4": 1.0}, abs=1e-4)


# -- keys ------------------------------------------------------------------------------------------


def test_a_node_with_another_key_is_named(seal: Any) -> None:
    with pytest.raises(
        FedpersError, match=r"^node \d+ has key [0-9a-f]{16}, takes [0-9a-f]{16}; g"
    ):
        seal("fedavg", keys={1: 1})


def test_one_that_comes_later_is_refused_by_name(
    seal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = seal("fedavg", keys={2: 1}, hosts=(("1", "2"), ("3",)))
    later = SealingNodes("bfv", HOSTS, keys={2: 1})
    server.strategy.roster.refresh(later, pack([], server.strategy.header()), timeout=0.05)
    node = list(later.get_node_ids())[2]
    wrong = pair("bfv", 1).key_id
    right = server.strategy.roster.key_id
    assert f"node {node} refused: key {wrong}, not {right}" in caplog.text
    assert server.strategy.roster.clients == ["1", "2", "3"]


def test_a_cohort_beyond_the_keys_room_is_refused(seal: Any) -> None:
    hosts = [[str(k) for k in range(1, 10)]]  # keys here have room for 8
    with pytest.raises(FedpersError, match=r"cohort: got 9, takes 1 to 8 vectors"):
        seal("fedavg", hosts=hosts)


# -- any bytes -------------------------------------------------------------------------------------


def junk(rng: random.Random) -> Any:
    """A JSON value that is not what anybody would write here."""
    return rng.choice(
        [
            None, True, -1, 0, 1 << 80, 10**400, float("inf"), float("nan"), "", "x" * 50, "\n",
            [], {}, [[]], [None], {"a": 1}, [["body"], 3, 4], "float64", [["w", [-1]]], 1e308, -0.0,
        ]
    )  # fmt: skip


def damaged(rng: random.Random, sealed: SealedParts) -> bytes:
    """One of a few kinds of damage, by chance; the digests are right in most of them."""
    data = sealed.to_bytes()
    _, (text, *blobs) = unframe(MAGIC, data)
    header = json.loads(text)
    kind = rng.randrange(9)
    if kind == 0:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[: rng.randrange(len(data))]
    if kind == 2:
        return MAGIC + rng.randbytes(rng.randrange(3000))
    if kind == 3:  # a value of the header, anywhere in it
        name = rng.choice(["layouts", "groups", "divisor"])
        header[name] = junk(rng)
        if header[name] is True:  # a divisor of 1
            header[name] = "1.5x"
    elif kind == 4:
        layout = header["layouts"][rng.choice(list(header["layouts"]))]
        layout[rng.choice(["dtype", "shapes"])] = junk(rng)
    elif kind == 5:  # text that is not JSON, or deep, or cut
        text = rng.choice([b"[" * 100_000, b"", b"\xff\xfe", text[: rng.randrange(len(text))]])
        return frame(MAGIC, {}, [text, *blobs])
    elif kind == 6:  # vectors: other numbers of them, or cut
        blobs = rng.choice([[], blobs * 2, [blobs[0][: rng.randrange(len(blobs[0]))], *blobs[1:]]])
    elif kind == 7:  # a vector whose coefficients or header are by chance
        inner, chunks = unframe(b"FPSEAL1\n", blobs[0])
        if rng.random() < 0.5:
            inner[rng.choice(list(inner))] = junk(rng)
        else:
            chunks = (b"\xff" * 7 + chunks[0][7:], *chunks[1:])
        lax = json.dumps(inner, sort_keys=True, separators=(",", ":")).encode()
        blobs = [loose_frame(lax, chunks), *blobs[1:]]
    else:
        return frame(MAGIC, {}, [])
    return frame(MAGIC, {}, [json.dumps(header).encode(), *blobs])


def loose_frame(text: bytes, chunks: Sequence[bytes]) -> bytes:
    """As ``frame``, of a header that JSON itself would not write."""
    import hashlib
    import struct

    lengths = struct.pack(f"<II{len(chunks)}I", len(text), len(chunks), *map(len, chunks))
    body = b"".join((b"FPSEAL1\n", lengths, text, *chunks))
    return body + hashlib.sha256(body).digest()


def storm(seal: Any, count: int, name: str, scheme: str) -> None:
    """Damage five of eight clients' messages in each round."""
    rng, everybody = random.Random(5), [str(k) for k in range(1, 9)]
    server = seal(name, *MEANS[name], scheme=scheme, hosts=[everybody[:4], everybody[4:]])
    spoil = server.grid.spoils
    for server_round in range(1, count // 5 + 1):
        chosen = sorted(rng.sample(everybody, 5))
        spoil.clear()
        spoil.update(dict.fromkeys(chosen, lambda sealed: raw(damaged(rng, sealed))))
        failures = server.train(server_round)
        assert sorted(failures) == chosen
        assert all(len(why) < 400 and "\n" not in why for why in failures.values())
        others = [int(client) for client in everybody if client not in chosen]
        assert server.mean() == pytest.approx(expected(name, others), abs=2e-4)


@pytest.mark.parametrize(("name", "scheme"), [("fedavg", "bfv"), ("perada", "ckks")])
def test_a_hundred_damaged_messages_each(seal: Any, name: str, scheme: str) -> None:
    storm(seal, 100, name, scheme)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), PATHS)
def test_five_hundred_damaged_messages_each(seal: Any, name: str, scheme: str) -> None:
    storm(seal, 500, name, scheme)


# -- clients add the noise -------------------------------------------------------------------------

BY_CLIENT = ("privacy.enabled=true", "privacy.unit=client", "privacy.deterministic_for_tests=true")


@pytest.mark.parametrize("honest", [2, 5])
def test_shares_of_honest_clients_add_up_to_all_of_the_noise(honest: int) -> None:
    """The sum of so many, as the server has it sealed and a client opens it."""
    size, sigma, norm = 20_000, 1.5, 0.5
    config = load_config(None, [*BY_CLIENT, f"privacy.max_grad_norm={norm}"])
    sealer = Sealer(config, "run", 8, known(0))
    sealer.__dict__["cipher"] = client_from(pair("ckks", 0).client)
    sealing = {"groups": [[["body"], False]], "noise": {"sigma": sigma, "honest": honest}}
    nothing = Parts({"body": Part.of({"w": torch.zeros(size)})})
    shares = [
        sealer.sealed(nothing, sealing, weight=1.0, client=str(k), server_round=1)
        for k in range(honest)
    ]
    server = server_from(pair("ckks", 0).server)
    total = server.add(share.sealed[0] for share in shares)
    noise = sealer.cipher.open(total)
    # The spread of 20,000 values is known to 0.5 %; their mean to 0.7 % of it.
    assert float(noise.std()) == pytest.approx(sigma * norm, rel=0.02)
    assert abs(float(noise.mean())) < 0.03 * sigma * norm
    alone = sealer.cipher.open(shares[0].sealed[0])
    assert float(alone.std()) == pytest.approx(sigma * norm / honest**0.5, rel=0.02)


def test_all_clients_are_told_the_same_share(seal: Any, tmp_path: Path) -> None:
    server = seal("fedavg", *BY_CLIENT, "encryption.honest=0.5", "strategy.fraction=0.75")
    server.strategy.client_level.open(4, tmp_path)
    messages = server.strategy.configure_train(1, ArrayRecord(), ConfigRecord(), server.grid)
    told = [unpack(message.content)[1]["sealing"]["noise"] for message in messages]
    sigma = server.strategy.client_level.mechanism.sigma
    assert told == [{"sigma": sigma, "honest": 2}] * len(told)  # of 3 that are asked


@pytest.mark.parametrize("spoil", [foreign, malformed])
@pytest.mark.parametrize(("broken", "mixed"), [("12", True), ("124", False)])
def test_a_round_with_too_few_shares_mixes_nothing(
    seal: Any, tmp_path: Path, spoil: Spoil, broken: str, mixed: bool
) -> None:
    server = seal("fedavg", *BY_CLIENT, spoils=dict.fromkeys(broken, spoil))
    server.strategy.client_level.open(4, tmp_path)
    before = server.strategy.parts
    assert sorted(server.train()) == list(broken)
    assert (server.strategy.parts is not before) == mixed  # of 4, 2 have to come
    if mixed:
        assert server.mean() == pytest.approx(3.5, abs=2e-4)


def test_noise_that_would_be_clipped_is_refused_before_it_is_charged(
    seal: Any, tmp_path: Path
) -> None:
    server = seal("fedavg", *BY_CLIENT, "privacy.max_grad_norm=50")
    server.strategy.client_level.open(4, tmp_path)
    spent = server.strategy.client_level.budget.spent
    with pytest.raises(ConfigError, match=r"encryption\.range: got 8\.0, takes \d+ or more, so"):
        server.train()
    assert server.strategy.client_level.budget.spent == spent
