"""What a client signs of each ciphertext that leaves it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fedpers.channels.identity.encoding import Refused, decode, encode, text
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry, verified

DIGEST = 32


class Place(NamedTuple):
    """What a ciphertext is of, as the receiver knows it.

    Attributes:
        run: name of the run.
        part: the names of the parts inside, and whether it is a unit vector.
    """

    run: str
    part: bytes


@dataclass(frozen=True)
class Statement:
    """A client's word for one ciphertext.

    Args:
        client: whose update it is of.
        round: in which it left.
        weight: by which the values were multiplied before they were sealed.
        digest: SHA-256 of the sealed vector.
        tag: see ``Tags``; none of a unit vector, which is in no sum.
        signature: of the client's identity.
    """

    client: str
    round: int
    weight: float
    digest: bytes
    tag: bytes = b""
    signature: bytes = b""

    def said(self, place: Place) -> bytes:
        """All but the tag and the signature."""
        what = (place.run, place.part, self.client, self.round, self.weight, self.digest)
        return encode("fedpers sealed update", *what)

    def signed(self, place: Place) -> bytes:
        """What the signature is over."""
        return encode(self.said(place), self.tag)

    def by(self, identity: Identity, place: Place) -> Statement:
        """With a signature."""
        return replace(self, signature=identity.sign(self.signed(place)))

    def check(self, registry: Registry, place: Place) -> None:
        """Whether its client has signed it.

        Raises:
            Refused: not in this run and for this part; or an unknown client.
        """
        if not verified(registry[self.client].verifying, self.signature, self.signed(place)):
            raise Refused(f"{self.client}: got an update that it has not signed, of this run")


class Term(NamedTuple):
    """A ciphertext in a sum, and how many times it is in it."""

    statement: Statement
    times: int = 1


def digest_of(blob: bytes) -> bytes:
    """Of a sealed vector's bytes."""
    return hashlib.sha256(blob).digest()


def terms_to_bytes(terms: Sequence[Term]) -> bytes:
    """A message; ``terms_from_bytes`` reads it back."""
    rows = []
    for s, times in terms:
        rows.append(encode(s.client, s.round, s.weight, s.digest, s.tag, s.signature, times))
    return encode(*rows)


def terms_from_bytes(data: bytes) -> tuple[Term, ...]:
    """What ``terms_to_bytes`` wrote.

    Raises:
        Refused: it cannot be read.
    """
    return tuple(_term(row) for row in decode(data, None, "terms"))


def _term(row: bytes) -> Term:
    client, *rest = decode(row, 7, "term")
    turn, weight, digest, tag, signature, times = rest
    try:
        numbers = _whole(turn), float(text(weight, "weight")), _whole(times)
        if not 0 <= numbers[1] <= 1 or not math.isfinite(numbers[1]) or len(digest) != DIGEST:
            raise ValueError
    except ValueError:
        raise Refused("term: got numbers that no update has") from None
    name = text(client, "client")
    return Term(Statement(name, *numbers[:2], digest, tag, signature), numbers[2])


def _whole(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 9:
        raise ValueError
    return int(digits)
