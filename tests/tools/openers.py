"""A few clients with one key, and the server's side of what it asks them: honest, or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sealing_nodes import Stores

from fedpers.channels.identity.registry import Registry
from fedpers.channels.node import ClientSide
from fedpers.channels.sealed import (
    KeyPair,
    SealedVector,
    bfv_for,
    ckks_for,
    client_from,
    generate,
    rows_for,
    server_from,
    sums,
)
from fedpers.channels.sealed.node import SealedNode
from fedpers.channels.sealed.openings import Mean
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.config import load_config
from fedpers.errors import ClientError
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import known

SCHEMES = ("bfv", "ckks", "ckks-rows")
LOGITS, UNIT = Group(("body", "logits")), Group(("unit",), unit=True)


class Clients:
    """Clients "1", "2", ... of one node and run, whose method has a mean of logits opened.

    Args:
        least: clients in a sum, at the least.
        run: its name.
    """

    def __init__(
        self, scheme: str, home: Path, count: int = 4, *, least: int = 1, run: str = "run"
    ) -> None:
        made = key_pair(scheme)
        self.names = [str(k + 1) for k in range(count)]
        self.kept, self.server = Stores(home), server_from(made.server)
        method = ClientSide(("logits", "unit"), lambda row: [round(max(x, 0), 2) for x in row])
        config = load_config(None, [])
        stores = str(home / run / "state")
        self.node = SealedNode(config, stores, 8, known(0), None, method, least)
        self.cipher: Any = client_from(made.client)
        self.node.__dict__["cipher"] = self.cipher
        publics = [self.node.identities.identity(self.kept, name).public for name in self.names]
        self.registry = Registry(publics).to_json()

    def update(
        self, client: str, server_round: int = 1, weight: float = 1.0, group: Group = LOGITS
    ) -> SealedParts:
        """A client's signed update: all values its number; or of a unit vector."""
        vector = torch.full((30,), float(client))
        parts = Parts({name: Part.of({"w": vector}) for name in group.names})
        terms = {"groups": [group.to_json()]}
        where: dict[str, Any] = {"client": client, "server_round": server_round}
        return self.node.sealed(self.kept, parts, terms, weight=weight, **where)

    def total(self, updates: Sequence[SealedParts]) -> SealedParts:
        """The sum, with its terms."""
        named = {u.terms[0][0].statement.client: u for u in updates}
        weights = {name: u.terms[0][0].statement.weight for name, u in named.items()}
        return sums.total(self.server, named, weights)

    def ask(self, kind: str, rows: Sequence[Any], clients: Sequence[str], **body: Any) -> Any:
        """What the node answers."""
        said = {"round": 1, "channel": {"registry": self.registry}, **body}
        return self.node.kinds[kind](self.kept, rows, {"clients": list(clients), **said})

    def arrive(self, row: SealedParts, receivers: Sequence[str], server_round: int = 1) -> Parts:
        """What clients open that are sent a row to train or to evaluate."""
        body = {"round": server_round, "channel": {"registry": self.registry}}
        body |= {"clients": list(receivers), "rows": dict.fromkeys(receivers, 0)}
        (opened,) = self.node.arrive(self.kept, [row], body)
        return opened

    def well(self, row: SealedParts) -> None:
        """Whether it opens.

        Raises:
            ClientError: it does not, or that is not told.
        """
        _, told = self.ask("check", [row], self.names[:1])
        if told["opens"] != [True]:
            raise ClientError("it does not open")

    def agreed(self, row: SealedParts, server_round: int = 1) -> Mapping[str, str]:
        """The agreement of all clients in a sum."""
        mean = Mean.of(row, server_round)
        said = {"round": server_round, "mean": mean._asdict()}
        _, told = self.ask("agree", [], mean.clients, **said)
        for why in told["failures"].values():
            raise why
        return told["agreed"]  # type: ignore[no-any-return]

    def open(self, row: SealedParts, client: str, server_round: int = 1, **body: Any) -> Parts:
        """A mean, as one client tells it."""
        agreed = body.pop("agreed", None) or self.agreed(row, server_round)
        ((opened,), _) = self.ask("open", [row], [client], round=server_round, agreed=agreed)
        return opened  # type: ignore[no-any-return]


@cache
def key_pair(scheme: str) -> KeyPair:
    """A key of one of the three parameter sets."""
    return generate({"bfv": bfv_for, "ckks": ckks_for, "ckks-rows": rows_for}[scheme](8))


def with_vector(row: SealedParts, **changes: Any) -> SealedParts:
    """A row whose vector says something else, with digests as they should be."""
    made = SealedVector(**{**vars(row.sealed[0]), **changes})
    return replace(row, blobs=(made.to_bytes(), *row.blobs[1:]))
