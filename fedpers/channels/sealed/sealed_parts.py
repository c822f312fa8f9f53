"""Parts under encryption: what a client sends of its model, and what comes back as a sum."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.channels.identity.identity import Identity
from fedpers.channels.opaque import Opaque
from fedpers.channels.sealed.cipher import ClientCipher, SealedVector, clip
from fedpers.channels.sealed.guard import Malformed, frame, unframe
from fedpers.channels.sealed.statement import (
    Place,
    Statement,
    Term,
    digest_of,
    terms_from_bytes,
    terms_to_bytes,
)
from fedpers.errors import ClientError, line_of
from fedpers.parts import Layout, Part, Parts
from fedpers.privacy.noise import Source

log = logging.getLogger("fedpers")

MAGIC = b"FPPARTS\n"
# What reading a stranger's JSON may raise.
UNREADABLE = (Malformed, Refused, ValueError, KeyError, TypeError, AttributeError, IndexError)
BEYOND = (OverflowError, RecursionError)


@dataclass(frozen=True)
class Group:
    """Parts that are flattened into one vector and sealed together.

    Attributes:
        names: the parts, in order.
        unit: sealed as a unit vector, for inner products.
    """

    names: tuple[str, ...]
    unit: bool = False

    @property
    def part(self) -> bytes:
        """As a statement names it."""
        return encode(str(self.unit), *self.names)

    def to_json(self) -> list[Any]:
        """A JSON form; ``from_json`` reads it back."""
        return [list(self.names), self.unit]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Group:
        """Read what ``to_json`` wrote."""
        return cls(tuple(str(name) for name in data[0]), bool(data[1]))


@dataclass(frozen=True)
class SealedParts(Opaque):
    """Parts of which only the layouts can be read.

    A message that came is read when it is asked for what it holds, so that one which cannot be read
    costs its sender alone.

    Attributes:
        layouts: of the parts, by name.
        groups: which of them are sealed together.
        blobs: the sealed vectors, a message each, in the groups' order.
        divisor: the opened values are divided by it: the weights of a sum add up to it.
        terms: of each group, whose signed updates it is made of; none before it is signed.
        broken: why the message could not be read, if so.
    """

    stype: ClassVar[str] = "fedpers.sealed.v2"
    layouts: Mapping[str, Layout]
    groups: tuple[Group, ...]
    blobs: tuple[bytes, ...]
    divisor: float = 1.0
    terms: tuple[tuple[Term, ...], ...] = ()
    broken: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all sealed vectors."""
        return sum(map(len, self.blobs))

    @cached_property
    def sealed(self) -> tuple[SealedVector, ...]:
        """The sealed vectors.

        Raises:
            ClientError: one cannot be read.
        """
        if self.broken:
            raise ClientError(self.broken)
        return tuple(SealedVector.from_bytes(blob) for blob in self.blobs)

    def of(self, names: Sequence[str]) -> SealedParts:
        """The groups that hold these parts and no others."""
        kept = [k for k, group in enumerate(self.groups) if {*group.names} <= {*names}]
        groups, blobs = tuple(self.groups[k] for k in kept), tuple(self.blobs[k] for k in kept)
        layouts = {name: self.layouts[name] for group in groups for name in group.names}
        terms = tuple(self.terms[k] for k in kept) if self.terms else ()
        return SealedParts(layouts, groups, blobs, self.divisor, terms)

    def to_bytes(self) -> bytes:
        """All of it as one message; ``from_bytes`` reads it back."""
        header = {
            "layouts": {name: layout.to_json() for name, layout in self.layouts.items()},
            "groups": [group.to_json() for group in self.groups],
            "divisor": self.divisor,
        }
        signed = [terms_to_bytes(terms) for terms in self.terms or [()] * len(self.groups)]
        # The layouts of a large model do not fit into a header's 4,096 bytes.
        return frame(MAGIC, {}, [json.dumps(header).encode(), *self.blobs, *signed])

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedParts:
        """Read what ``to_bytes`` wrote.

        Raises:
            ClientError: it was changed, or is no such message.
        """
        try:
            _, (text, *blobs) = unframe(MAGIC, data)
            header = json.loads(text)
            layouts = {str(n): Layout.from_json(x) for n, x in header["layouts"].items()}
            groups = tuple(Group.from_json(group) for group in header["groups"])
            divisor = float(header["divisor"])
            if 2 * len(groups) != len(blobs) or not 0 < divisor < float("inf"):
                raise ValueError(f"{len(blobs)} vectors and terms for {len(groups)} groups")
            if [n for group in groups for n in group.names] != list(layouts):
                raise ValueError("groups and layouts name other parts")
            terms = tuple(terms_from_bytes(signed) for signed in blobs[len(groups) :])
        except (*UNREADABLE, *BEYOND) as error:
            reason = line_of(error)[:200]  # it may quote what a stranger wrote
            raise ClientError(f"sealed parts: cannot be read ({reason})") from None
        return cls(layouts, groups, tuple(blobs[: len(groups)]), divisor, terms)

    @classmethod
    def unreadable(cls, reason: str) -> SealedParts:
        """As the base says."""
        return cls({}, (), (), broken=reason)


def seal_parts(
    cipher: ClientCipher,
    parts: Parts,
    groups: Sequence[Group],
    *,
    range: float,
    weight: float,
    source: Source,
) -> SealedParts:
    """Flatten, clip to [-range, range], multiply by ``weight`` (0..1) and encrypt, group by group.

    Raises:
        ClientError: a value is not finite.
    """
    blobs = []
    for group in groups:
        vector = torch.cat([parts[name].vector.float() for name in group.names])
        if group.unit:
            blobs.append(cipher.seal_unit(vector).to_bytes())
            continue
        beyond = int((vector.abs() > range).sum())
        if beyond:
            log.warning(
                "%d of %d values are beyond encryption.range %g and were clipped to it: raise it",
                beyond,
                len(vector),
                range,
            )
        # NaN stays NaN and is refused.
        sealed = cipher.seal(weight * clip(vector, range), range=range, source=source)
        blobs.append(sealed.to_bytes())
    layouts = {name: parts[name].layout for group in groups for name in group.names}
    return SealedParts(layouts, tuple(groups), tuple(blobs))


def sign_parts(
    cipher: ClientCipher,
    identity: Identity,
    run: str,
    server_round: int,
    sealed: SealedParts,
    weight: float = 1.0,
) -> SealedParts:
    """With its client's word for each group.

    Args:
        run: name of the run.
        weight: as the parts were multiplied by.
    """
    terms = []
    for group, blob, one in zip(sealed.groups, sealed.blobs, sealed.sealed, strict=True):
        place, weighs = Place(run, group.part), 1.0 if group.unit else weight
        word = Statement(identity.client, server_round, weighs, digest_of(blob))
        if not group.unit:
            word = replace(word, tag=cipher.tag(one, word.said(place)))
        terms.append((Term(word.by(identity, place)),))
    return replace(sealed, terms=tuple(terms))


def open_parts(cipher: ClientCipher, sealed: SealedParts) -> Parts:
    """Decrypt and divide.

    Raises:
        ClientError: under another key, malformed, or not the sum that it says it is.
    """
    opened: dict[str, Part] = {}
    for group, one in zip(sealed.groups, sealed.sealed, strict=True):
        vector, at = cipher.open(one) / sealed.divisor, 0
        if len(vector) != sum(sealed.layouts[name].size for name in group.names):
            raise ClientError(f"sealed parts: {len(vector)} values do not fit {group.names}")
        for name in group.names:
            layout = sealed.layouts[name]
            piece = vector[at : at + layout.size].to(layout.dtype)
            opened[name], at = Part(layout, piece.clone()), at + layout.size
    return Parts(opened)


def with_groups(sealed: SealedParts, other: SealedParts) -> SealedParts:
    """Both one's groups, for parts that are mixed apart."""
    if sealed.divisor != other.divisor:
        raise ValueError(f"divisors: got {sealed.divisor} and {other.divisor}, takes one")
    return replace(
        sealed,
        layouts={**sealed.layouts, **other.layouts},
        groups=sealed.groups + other.groups,
        blobs=sealed.blobs + other.blobs,
        terms=sealed.terms + other.terms,
    )
