"""No message crashes a server or is taken for a sum: each is refused for its own reason."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpers.channels.sealed import (
    ClientCipher,
    SealedVector,
    ServerCipher,
    client_from,
    generate,
    parameters_for,
    server_from,
)
from fedpers.channels.sealed.cipher import MAGIC
from fedpers.channels.sealed.guard import SEED_BYTES, frame, unframe
from fedpers.channels.sealed.parameters import SCHEMES
from fedpers.errors import ClientError
from fedpers.privacy.noise import secret


@dataclass
class Case:
    """A client, a server, a message of another key, and TenSEAL's own bytes for a vector."""

    client: ClientCipher
    server: ServerCipher
    message: bytes
    foreign: bytes
    tenseal: bytes


@cache
def case(scheme: str) -> Case:
    import tenseal

    pair, other = (generate(parameters_for(scheme, 8)) for _ in range(2))
    client = client_from(pair.client)
    vector = torch.linspace(-1, 1, 9000)

    def message(sender: ClientCipher) -> bytes:
        return sender.seal(vector, range=1.0, source=secret()).to_bytes()

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 4096, -1, [44, 45])
    context.global_scale = 2**38
    own = tenseal.ckks_vector(context, [0.5] * 2048).serialize()
    foreign = message(client_from(other.client))
    return Case(client, server_from(pair.server), message(client), foreign, own)


Attack = Callable[[random.Random, Case], bytes]


def flipped(rng: random.Random, case: Case) -> bytes:
    at = rng.randrange(len(MAGIC), len(case.message))
    return changed(case.message, at, case.message[at] ^ (1 << rng.randrange(8)))


def wrong_magic(rng: random.Random, case: Case) -> bytes:
    return changed(case.message, rng.randrange(len(MAGIC)), 0)


def cut(rng: random.Random, case: Case) -> bytes:
    return case.message[: rng.randrange(100, len(case.message))]


def longer(rng: random.Random, case: Case) -> bytes:
    return case.message + rng.randbytes(rng.randint(1, 100))


def noise(rng: random.Random, case: Case) -> bytes:
    return MAGIC + rng.randbytes(rng.randint(60, 5000))


def short(rng: random.Random, case: Case) -> bytes:
    return case.message[: rng.randrange(48)]


def foreign(rng: random.Random, case: Case) -> bytes:
    return case.foreign


def of_another_scheme(rng: random.Random, case: Case) -> bytes:
    own = case.client.parameters.scheme
    return resealed(case, {"scheme": rng.choice([s for s in SCHEMES if s != own])})


def header_values(rng: random.Random, case: Case) -> bytes:
    name, value = rng.choice(
        [
            ("size", 0), ("size", -5), ("size", 1 << 70), ("size", True), ("size", 2.0),
            ("terms", 0), ("terms", 1 << 40), ("terms", "1"), ("range", 0.0), ("range", -1.0),
            ("range", 1), ("range", None), ("weight", 0.0), ("weight", [1.0]), ("kind", "x"),
            ("kind", 3), ("key_id", 7), ("scheme", None), ("scheme", "bgv"), ("extra", 1),
            ("key_id", "../keys"),
        ]
    )  # fmt: skip
    return resealed(case, {name: value})


def header_text(rng: random.Random, case: Case) -> bytes:
    """Headers that JSON reads, or does not, in ways of its own."""
    text = json.dumps(unframe(MAGIC, case.message)[0])
    raw = rng.choice(
        [
            text.replace('"range": 1.0', '"range": NaN'),
            text.replace('"range": 1.0', '"range": 1e999'),
            text.replace('"size"', '"kind": "vector", "size"'), "[" * 2000, "[]", "null", "{", "",
            text.replace("}", ', "size": 3}'), "\xff" * 8, text.replace("9000", "9" * 3500),
        ]
    )  # fmt: skip
    return raw_frame(raw.encode("latin-1"), unframe(MAGIC, case.message)[1])


def chunk_lengths(rng: random.Random, case: Case) -> bytes:
    _, (first, *others) = unframe(MAGIC, case.message)
    other = rng.choice([b"", first[: rng.randrange(len(first))], first + b"\0", first * 2])
    return resealed(case, {}, [other, *others])


def chunk_counts(rng: random.Random, case: Case) -> bytes:
    chunks = unframe(MAGIC, case.message)[1]
    return resealed(case, {}, rng.choice([(), chunks[:1], chunks * 2, (*chunks, b"")]))


def protobuf(rng: random.Random, case: Case) -> bytes:
    """TenSEAL's own messages, whole or with lengths that read past their end, as chunks."""
    _, (first, *others) = unframe(MAGIC, case.message)
    own = rng.choice([case.tenseal, b"\x0a\xff\xff\xff\xff\x0f" + case.tenseal[6:]])
    if rng.random() < 0.5:  # at the length that a chunk has
        own = own.ljust(len(first), b"\xff")[: len(first)]
        own = own[: -SEED_BYTES - 8] + b"\xff" * 8 + own[-SEED_BYTES:]
    return resealed(case, {}, [own, *others])


def coefficient(rng: random.Random, case: Case) -> bytes:
    """A coefficient that is not below the modulus: its bytes are all ones."""
    chunks = list(unframe(MAGIC, case.message)[1])
    index, width = rng.randrange(len(chunks)), 6 if case.client.parameters.scheme == "ckks" else 7
    at = width * rng.randrange((len(chunks[index]) - SEED_BYTES) // width)
    chunks[index] = chunks[index][:at] + b"\xff" * width + chunks[index][at + width :]
    return resealed(case, {}, chunks)


# The attack, and how its refusal begins.
ATTACKS: list[tuple[Attack, str]] = [
    (flipped, "sealed: digest"),
    (wrong_magic, "sealed: magic"),
    (cut, "sealed: digest"),
    (longer, "sealed: digest"),
    (noise, "sealed: digest"),
    (short, "sealed: length"),
    (foreign, "sealed: key id"),
    (of_another_scheme, "sealed: scheme"),
    (header_values, "sealed: header"),
    (header_text, "sealed: header"),
    (chunk_lengths, "sealed: chunk"),
    (chunk_counts, "sealed: size"),
    (protobuf, "sealed: chunk"),
    (coefficient, "sealed: chunk"),
]


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def resealed(case: Case, changes: dict[str, Any], chunks: Any = None) -> bytes:
    """The message with another header or chunks, and lengths and digest as they should be."""
    header, own = unframe(MAGIC, case.message)
    return frame(MAGIC, {**header, **changes}, own if chunks is None else chunks)


def raw_frame(text: bytes, chunks: tuple[bytes, ...]) -> bytes:
    """A frame around a header that is not made by ``json.dumps``."""
    import hashlib
    import struct

    lengths = struct.pack(f"<II{len(chunks)}I", len(text), len(chunks), *map(len, chunks))
    body = b"".join((MAGIC, lengths, text, *chunks))
    return body + hashlib.sha256(body).digest()


def storm(count: int) -> int:
    """Send ``count`` messages to servers; returns how many were refused for the right reason."""
    rng, refused = random.Random(7), 0
    for index in range(count):
        attack, reason = ATTACKS[index % len(ATTACKS)]
        target = case(("bfv", "ckks", "ckks-rows")[index // len(ATTACKS) % 3])
        honest = SealedVector.from_bytes(target.message)
        try:
            target.server.add([honest, SealedVector.from_bytes(attack(rng, target))])
        except ClientError as error:
            assert str(error).startswith(reason), f"{attack.__name__}: {error}"
            assert "\n" not in str(error)
            refused += 1
        else:
            raise AssertionError(f"{attack.__name__}: accepted")
    return refused


def in_a_process(count: int) -> None:
    """A crash of the process shows as its exit status."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), str(count)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["refused", str(count)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"terms": 9, "weight": 9.0, "kind": "sum"}, "terms: got 9, takes <= 8"),
        ({"terms": 2}, "terms: 2 of weight 1.0 in a fresh one"),
        ({"weight": 0.5}, "terms: 1 of weight 0.5 in a fresh one"),
        ({"kind": "sum", "weight": 2.0}, "weight: got 2.0 for 1 terms"),
        ({"kind": "sum"}, "chunk: got"),
        ({"kind": "mix"}, "kind: got mix"),
        ({"kind": "head"}, "kind: got head"),
        ({"kind": "product"}, "kind is 'product'"),
        ({"size": 100}, "size: 2 chunks for 100 values, takes 1"),
        ({"size": 90_000}, "size: 2 chunks for 90000 values, takes 11"),
        ({"size": 1 << 32}, "size: 2 chunks"),
        ({"size": 9001}, "size and range: got 9001 in 1, takes 9000 in 1"),
        ({"range": 2.0}, "size and range: got 9000 in 2, takes 9000 in 1"),
    ],
)
def test_refuses_claims_that_the_chunks_do_not_bear(changes: dict[str, Any], reason: str) -> None:
    target = case("bfv")
    with pytest.raises(ClientError, match=reason):
        claim = SealedVector.from_bytes(resealed(target, changes))
        target.server.add([SealedVector.from_bytes(target.message), claim])


def test_refuses_200_messages() -> None:
    in_a_process(200)


@pytest.mark.slow
def test_refuses_2000_messages() -> None:
    in_a_process(2000)


@pytest.mark.parametrize("scheme", ["bfv", "ckks", "ckks-rows"])
def test_what_cannot_be_told_apart_is_caught_by_its_range(scheme: str) -> None:
    """Another seed or other coefficients with a digest to match are valid ciphertexts of noise."""
    target = case(scheme)
    rng = random.Random(1)
    chunks = list(unframe(MAGIC, target.message)[1])
    seedless = chunks[0][:-SEED_BYTES]
    replaced = resealed(target, {}, [seedless + rng.randbytes(SEED_BYTES), *chunks[1:]])
    total = target.server.add(
        [SealedVector.from_bytes(target.message), SealedVector.from_bytes(replaced)]
    )
    with pytest.raises(ClientError, match="open"):
        target.client.open(total)


def test_heads_are_guarded_too() -> None:
    target = case("ckks-rows")
    head = target.client.seal_unit(torch.linspace(-1, 1, 650))
    with pytest.raises(ClientError, match="kind"):
        target.client.open_unit(SealedVector.from_bytes(target.message))
    with pytest.raises(ClientError, match="kind"):
        target.server.add([head])
    data = head.chunks[0]
    broken = SealedVector(**{**vars(head), "chunks": (b"\xff" * 7 + data[7:],)})
    for look in (target.server.check, target.client.open_unit):
        with pytest.raises(ClientError, match="coefficient"):
            look(broken)
    changed = SealedVector(**{**vars(head), "chunks": (data[:7] + b"\0" * 7 + data[14:],)})
    assert not target.client.open_unit(changed).any()  # it is no unit vector any more


def test_nothing_encrypted_is_refused_or_opens_as_nothing() -> None:
    """Chunks of zeros: SEAL calls a sum of them transparent."""
    target = case("bfv")
    vector = target.server.add([SealedVector.from_bytes(target.message)])
    zeros = tuple(bytes(len(chunk)) for chunk in vector.chunks)
    empty = SealedVector(**{**vars(vector), "chunks": zeros})
    with pytest.raises(ClientError, match="transparent"):
        target.server.add([empty, empty])


if __name__ == "__main__":
    print("refused", storm(int(sys.argv[1])))
