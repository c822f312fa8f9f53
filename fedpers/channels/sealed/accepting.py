"""What the server makes sure of before it mixes an update that it cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.registry import Registry
from fedpers.channels.sealed.cipher import ServerCipher
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.channels.sealed.statement import Place, Statement, digest_of
from fedpers.errors import ClientError
from fedpers.parts import Layout

FRESH = {False: ("vector",), True: ("head",)}


def as_asked_for(
    update: SealedParts,
    groups: Sequence[Group],
    layouts: Mapping[str, Layout],
    cipher: ServerCipher,
    range: float,
) -> str | None:
    """Why an update is not sealed as was asked for; None if, as far as one can see, it is.

    Raises:
        ClientError: it cannot be read.
    """
    found = update.sealed
    if list(update.groups) != groups or update.layouts != layouts:
        return f"update: got other parts than {[list(g.names) for g in groups]}"
    if update.divisor != 1:
        return f"update: got divisor {update.divisor:g}, takes 1"
    for group, one in zip(update.groups, found, strict=True):
        size = sum(layouts[name].size for name in group.names)
        if one.size != size:
            return f"update: got {one.size} values in {list(group.names)}, takes {size}"
        takes = 1.0 if group.unit else range
        if one.range != takes:
            return f"update: got range {one.range:g}, takes {takes:g}"
        one.expect(cipher.parameters, cipher.key_id, FRESH[group.unit])
        if group.unit:  # not in a sum, which would find it malformed
            cipher.check(one)
    return None


def check_signed(update: SealedParts, registry: Registry, run: str, word: Statement) -> None:
    """Whether an update is its client's own, of this round and weight, whoever brought it.

    Args:
        run: its name.
        word: what the client has to say, but for digest and tag.

    Raises:
        ClientError: it is another's, of another round, or changed on its way.
    """
    if len(update.terms) != len(update.groups):
        raise ClientError("sealed: got an update that nobody has signed")
    for group, blob, terms in zip(update.groups, update.blobs, update.terms, strict=True):
        if len(terms) != 1 or terms[0].times != 1:
            raise ClientError(f"sealed: got {len(terms)} statements of one update, takes one")
        said = terms[0].statement
        if (said.client, said.round) != (word.client, word.round):
            got = f"that of {said.client!r} in round {said.round}"
            raise ClientError(f"sealed: got {got}, takes {word.client!r} and {word.round}")
        weight = 1.0 if group.unit else word.weight
        if said.weight != weight:
            raise ClientError(f"sealed: got weight {said.weight:g}, takes {weight:g}")
        if said.digest != digest_of(blob):
            raise Refused(f"{said.client}: got another update than it has signed")
        said.check(registry, Place(run, group.part))
