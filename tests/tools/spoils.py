"""What clients make of their sealed parts, to spoil a sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sealing_nodes import raw

from fedpers.channels.sealed.guard import frame, unframe
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.parts import Layout, Part, Parts


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
