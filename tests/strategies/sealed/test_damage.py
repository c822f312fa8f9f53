"""Any bytes in the place of sealed updates."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from sealing_nodes import MEANS, PATHS, expected, raw

from fedpers.channels.sealed.guard import frame, unframe
from fedpers.channels.sealed.sealed_parts import MAGIC, SealedParts


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
