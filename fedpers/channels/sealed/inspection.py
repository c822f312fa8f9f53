"""What a client makes sure of before it opens a ciphertext."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.registry import Registry
from fedpers.channels.sealed.cipher import ClientCipher, SealedVector
from fedpers.channels.sealed.parameters import WEIGHT_BITS
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.channels.sealed.statement import Place, Term, digest_of

COUNTS = 0.1  # of the largest weight in a sum: with less a client does not hide the others


class NotTheSum(Refused):
    """A ciphertext is another than the sum of its terms: made so by the server, or because a
    client signed a wrong tag."""


@dataclass(frozen=True)
class Inspection:
    """A client opens what clients of its run have signed, or a sum of that, and nothing else.

    A decryption of anything else tells of the key, even if it tells only whether it worked: a
    server that may choose ciphertexts has the secret key after a few answers.

    Args:
        run: its name.
        registry: the clients' identities.
        range: of the values that were sealed.
        least: clients in a sum, at the least.
    """

    run: str
    registry: Registry
    range: float
    least: int

    def check(
        self,
        cipher: ClientCipher,
        row: SealedParts,
        rounds: Collection[int],
        receivers: Collection[str] = (),
    ) -> None:
        """Every group of a row.

        Args:
            rounds: in which its terms may have left their clients.
            receivers: the clients that receive it: what all of them are in may have fewer terms.

        Raises:
            Refused: it is not what it says it is, or not to be opened.
        """
        if len(row.terms) != len(row.groups):
            raise Refused("sealed: got parts that nobody has signed")
        for group, one, blob, terms in zip(
            row.groups, row.sealed, row.blobs, row.terms, strict=True
        ):
            self._terms(group, terms, rounds)
            if self._counted(terms) < self.least and not _all_in(receivers, terms):
                got = f"{len(terms)} terms, {self._counted(terms)} of them of weight"
                raise Refused(f"sealed: got a sum of {got}, takes {self.least} or more")
            if one.kind in ("vector", "head"):
                _fresh(one, blob, terms, row.divisor, unit=group.unit)
            else:
                self._summed(cipher, group, one, terms, row.divisor)

    def _terms(self, group: Group, terms: Sequence[Term], rounds: Collection[int]) -> None:
        clients = [term.statement.client for term in terms]
        if len(set(clients)) != len(clients) or not clients:
            raise Refused("sealed: got a client's update twice, or none, takes each once")
        for statement, times in terms:
            if statement.round not in rounds:
                got = f"an update of round {statement.round}"
                raise Refused(f"{statement.client}: got {got}, takes {_listed(rounds)}")
            if times < 1 or statement.weight <= 0:
                raise Refused(f"{statement.client}: got an update that is {times} times in a sum")
            statement.check(self.registry, Place(self.run, group.part))

    @staticmethod
    def _counted(terms: Sequence[Term]) -> int:
        """How many have a weight beside the largest."""
        weights = [statement.weight * times for statement, times in terms]
        return sum(weight >= COUNTS * max(weights) for weight in weights)

    def _summed(
        self,
        cipher: ClientCipher,
        group: Group,
        one: SealedVector,
        terms: Sequence[Term],
        divisor: float,
    ) -> None:
        """A sum or mixture is that of its terms, and says of itself what follows from them."""
        if one.kind == "sum":
            due, weighs = float(len(terms)), sum(s.weight for s, _ in terms)
            right = one.terms == len(terms) and all(term.times == 1 for term in terms)
        else:
            due, weighs = sum(term.times for term in terms) / 2**WEIGHT_BITS, 1.0
            right = all(term.statement.weight == 1 for term in terms)
        slack = len(terms) / 2**WEIGHT_BITS
        if not right or abs(one.weight - due) > slack or abs(divisor / weighs - 1) > 1e-6:
            raise Refused(f"sealed: got a {one.kind} of other weights than its terms have")
        if one.range != self.range:
            raise Refused(f"sealed: got range {one.range:g}, takes {self.range:g}")
        place = Place(self.run, group.part)
        if not cipher.fit(one, [(s.said(place), s.tag, times) for s, times in terms]):
            raise NotTheSum("sealed: got a ciphertext that is not the sum of its terms")


def _fresh(
    one: SealedVector, blob: bytes, terms: Sequence[Term], divisor: float, *, unit: bool
) -> None:
    """One client's update, as it left."""
    if one.kind != ("head" if unit else "vector"):
        raise Refused(f"sealed: got a {one.kind} in the place of another kind")
    (statement, times), *more = terms
    if more or times != 1 or digest_of(blob) != statement.digest or divisor != statement.weight:
        raise Refused(f"{statement.client}: got another update than it has signed")


def _all_in(receivers: Collection[str], terms: Sequence[Term]) -> bool:
    clients = {term.statement.client for term in terms}
    return bool(receivers) and set(receivers) <= clients


def _listed(rounds: Collection[int]) -> str:
    return f"round {max(rounds)}" if len(rounds) == 1 else f"rounds up to {max(rounds)}"
