"""What a node opens for the server, and what it makes sure of first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.home import Home
from fedpers.channels.identity.registry import verified
from fedpers.channels.node import ClientSide, Kept
from fedpers.channels.sealed.cipher import ClientCipher
from fedpers.channels.sealed.inspection import Inspection, NotTheSum
from fedpers.channels.sealed.openings import Mean, Openings, quorum
from fedpers.channels.sealed.sealed_parts import SealedParts, open_parts
from fedpers.errors import ClientError
from fedpers.parts import Parts
from fedpers.records import Row

COMPARED = "compared.json"
PAIR = 2  # the fewest clients whose mean is opened, or that are compared

Answered = tuple[list[Row], dict[str, Any]]


class Opener:
    """The server's questions about what it cannot read. Each may be refused, see ``Inspection``.

    Args:
        run: its name.
        home: of the clients' identities.
        cipher_of: the cipher under whose key a row is.
        inspection: what has to be made sure of, by a message.
        method: the client side of the method.
    """

    def __init__(
        self,
        run: str,
        home: Home,
        cipher_of: Callable[[SealedParts], ClientCipher],
        inspection: Callable[[Kept, Mapping[str, Any]], Inspection],
        method: ClientSide | None,
    ) -> None:
        self.run, self.home, self.cipher_of = run, home, cipher_of
        self.inspection, self.method = inspection, method

    def check(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> Answered:
        """Whether sums of this round are as honest clients' are: a yes or no each.

        An honest client's update always is, so the server learns of others alone; of what is not
        the sum of its terms it learns that, as it is not opened.
        """
        inspection, opens = self.inspection(kept, body), []
        for row in _sealed(rows):
            cipher = self.cipher_of(row)
            try:
                inspection.check(cipher, row, (int(body["round"]),))
                opens.append(_well(cipher, row))
            except NotTheSum:
                opens.append(False)
        return [], {"opens": opens}

    def agree(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> Answered:
        """The word of each client named that a mean may be opened, which it is in."""
        agreed, failures = {}, dict[str, Exception]()
        said = body["mean"]
        parts, clients = (tuple(str(name) for name in said[key]) for key in ("parts", "clients"))
        mean = Mean(int(body["round"]), parts, clients, str(said["sum"]))
        for client in body["clients"]:
            try:
                self._may_open(client, mean, self.inspection(kept, body).least)
                self._openings(kept, client, mean.kept).agree(mean.round, mean.sum)
                signed = self.home.identity(kept, client).sign(mean.agreement(self.run))
                agreed[client] = signed.hex()
            except Exception as error:  # it costs itself, not the node's others
                failures[client] = error
        return [], {"agreed": agreed, "failures": failures}

    def open(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> Answered:
        """A mean in the clear, by one client that is in it, once; rounded, see
        ``ClientCipher.told``."""
        (row,), (client,) = _sealed(rows), body["clients"]
        mean, inspection = Mean.of(row, int(body["round"])), self.inspection(kept, body)
        self._may_open(client, mean, inspection.least)
        cipher, least = self.cipher_of(row), max(PAIR, inspection.least)
        replace(inspection, least=least).check(cipher, row, (mean.round,))
        registry, said = inspection.registry, mean.agreement(self.run)
        given = {c: bytes.fromhex(str(body["agreed"].get(c, ""))) for c in mean.clients}
        good = sum(verified(registry[c].verifying, signed, said) for c, signed in given.items())
        if good < (takes := quorum(len(mean.clients))):
            raise Refused(f"sealed: {good} agreed to have it opened, takes {takes}")
        self._openings(kept, client, mean.kept).open(mean.round, mean.sum)
        opened = open_parts(cipher, row)
        told = {n: p.like(cipher.told(p.vector, inspection.range)) for n, p in opened.items()}
        return [Parts(told)], {}

    def similarity(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> Answered:
        """For each client the weights of all clients by the similarity of their unit vectors,
        rounded."""
        units, client, server_round = _sealed(rows), str(body["opener"]), int(body["round"])
        inspection = self.inspection(kept, body)
        least, clients = max(PAIR, inspection.least), [str(name) for name in body["clients"]]
        for name, unit in zip(clients, units, strict=True):
            if len(unit.groups) != 1 or not unit.groups[0].unit:
                raise Refused(f"{name}: got other parts than a unit vector")
            rounds = range(server_round + 1)
            inspection.check(self.cipher_of(unit), unit, rounds, receivers=(name,))
            if (found := unit.terms[0][0].statement.client) != name:
                raise Refused(f"{name}: got the unit vector of {found!r}")
        if len(set(clients)) != len(clients) or client not in clients or len(clients) < least:
            got = f"{len(set(clients))} clients"
            raise Refused(f"clients: got {got}, takes {least} or more, this one among them")
        self._openings(kept, client, COMPARED).compare(server_round)
        opened = torch.stack([self.cipher_of(one).open_unit(one.sealed[0]) for one in units])
        cosines = (opened @ opened.T).clamp(-1, 1).fill_diagonal_(1)
        assert self.method is not None
        weights = [self.method.weights_of(row) for row in cosines.tolist()]
        return [], {"rows": dict(zip(clients, weights, strict=True))}

    def _may_open(self, client: str, mean: Mean, least: int) -> None:
        """Whether a mean is one that this client may have a part in opening.

        Raises:
            Refused: it is not.
        """
        if not set(mean.parts) & set(self.method.opens if self.method else ()):
            raise Refused(f"sealed: got a mean of {mean.parts} to open, which nobody has a use for")
        if client not in mean.clients:
            raise Refused(f"sealed: got a sum without {client}, takes one with it")
        if (got := len(set(mean.clients))) < max(PAIR, least) or got != len(mean.clients):
            takes = f"{max(PAIR, least)} or more"
            raise Refused(f"sealed: got a sum of {got} clients, takes {takes}")

    def _openings(self, kept: Kept, client: str, name: str) -> Openings:
        """Beside what the client keeps in this run.

        Raises:
            ConfigError: it is not this node's client.
        """
        self.home.identity(kept, client)
        return Openings(kept.folder(client) / name)


def _well(cipher: ClientCipher, row: SealedParts) -> bool:
    try:
        open_parts(cipher, row)
    except ClientError:
        return False
    return True


def _sealed(rows: Sequence[Row]) -> list[SealedParts]:
    found = [row for row in rows if isinstance(row, SealedParts)]
    if len(found) != len(rows) or not found:
        raise Refused("message: got no sealed parts, takes some")
    return found
