"""Masked sums at the nodes: clients with identities, each of which masks and helps to unmask."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.home import IDENTITY, Home, identified
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.check import policy_of
from fedpers.channels.masked.client import MaskedClient
from fedpers.channels.masked.envelope import Envelope
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.messages import Request
from fedpers.channels.masked.session import Terms
from fedpers.channels.masked.vector import from_json, values_of, weight_of
from fedpers.channels.node import Kept, Leaving, NodeChannel
from fedpers.config import Config
from fedpers.errors import ClientError
from fedpers.parts import Layout, Parts
from fedpers.privacy.noise import Sources, known
from fedpers.records import Row, in_the_clear

SERVED = "served.json"


class MaskedNode(NodeChannel):
    """The clients of a node, each with keys of its own.

    What was served is beside its keys, see ``Home``.

    Args:
        config: the run's settings.
        sources: of what is drawn to round a value.
        keys: the folder of a device's owner; None in a simulation.
    """

    def __init__(self, config: Config, sources: Sources, keys: Path | None = None) -> None:
        super().__init__()
        self.config, self.sources, self.home = config, sources, Home(enrol, keys)
        self.kinds = {"advertise": self._advertise, "sign": self._sign, "reveal": self._reveal}

    def introduction(
        self, kept: Kept, clients: Sequence[str], terms: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The clients' public halves, and the last tag that any of them has served."""
        identities = [self.home.identity(kept, client) for client in clients]
        served = [Memory(self.home.folder(kept, c) / SERVED).read().tag for c in clients]
        registry = Registry([one.public for one in identities])
        return {"identities": registry.to_json(), "tag": max(served, default=0)}

    def arrive(self, row: Row) -> Parts:
        """As it came: sums are for all to see."""
        return in_the_clear(row)

    def derives(self, terms: Mapping[str, Any], sent: Sequence[str]) -> list[str]:
        """What the server sums beside what was sent."""
        return [str(name) for name in terms.get("derived", [])]

    def leave(self, kept: Kept, leaving: Leaving) -> Row | None:
        """Masked, with the report inside."""
        client, server_round, update, report, body = leaving
        said = body.get("channel", {})
        if not update and "terms" not in said:
            return update  # a method that shares nothing
        terms, most = _terms(said), self.config.encryption.masks.most_examples
        # Rounding is drawn anew each time, unless somebody has to see the same bits twice.
        draws = self.sources if self.config.privacy.enabled else known(self.config.seed)
        with self._timed("encrypt"):
            words = terms.layout.quantised(
                values_of(terms.layout, update, report),
                weight_of(report, str(said["weights"]), most),
                draws("rounding", server_round, client),
            )
            return Envelope(self._client(kept, client, said).mask(terms, words))

    def disclosed(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """What comes of settings and the account alone, as all else is in the vector."""
        rest = {name: value for name, value in report.items() if name != "method"}
        return {**rest, "examples": 1, "loss": None}

    def as_declared(
        self, row: Row, declared: Mapping[str, Layout], terms: Mapping[str, Any]
    ) -> Row:
        """A message of the protocol."""
        if not isinstance(row, Envelope):
            raise ClientError("upload: got plain parts, takes a masked vector")
        return row

    # -- its own kinds of message --------------------------------------------------------------

    def _advertise(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """AdvertiseKeys: each client's contribution to the graph."""

        def said(client: MaskedClient, terms: Terms, _: Row | None) -> bytes:
            return client.advertise(terms)

        return self._each(kept, rows, body, said)

    def _sign(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """ConsistencyCheck: each client's signature under the survivors."""
        survivors = [str(client) for client in body["survivors"]]

        def signed(client: MaskedClient, terms: Terms, _: Row | None) -> bytes:
            return client.sign(terms, survivors)

        return self._each(kept, rows, body, signed)

    def _reveal(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Unmasking: each client's shares for that one set."""

        def shares(client: MaskedClient, terms: Terms, row: Row | None) -> bytes:
            if not isinstance(row, Envelope):
                raise Refused("request: got none, takes one a client")
            asked = Request.from_bytes(row.data)
            return client.reveal(terms, asked.survivors, asked.signatures, asked.boxes)

        return self._each(kept, rows, body, shares)

    def _each(
        self,
        kept: Kept,
        rows: Sequence[Row],
        body: Mapping[str, Any],
        step: Callable[[MaskedClient, Terms, Row | None], bytes],
    ) -> tuple[list[Row], dict[str, Any]]:
        """One step of each client named, with its row if there are any."""
        answers: list[Row] = []
        failures: dict[str, Exception] = {}
        own = list(rows) if len(rows) == len(body["clients"]) else [None] * len(body["clients"])
        for name, row in zip(body["clients"], own, strict=True):
            try:
                with self._timed("encrypt"):
                    client = self._client(kept, name, body["channel"])
                    answers.append(Envelope(step(client, _terms(body["channel"]), row)))
            except Exception as error:  # it costs itself, not the node's others
                failures[name] = error
        return answers, {"failures": failures, **self.take_seconds()}

    def _client(self, kept: Kept, client: str, said: Mapping[str, Any]) -> MaskedClient:
        """A client under the registry that it has pinned.

        Raises:
            Refused: the server shows another.
        """
        registry = self.home.registry(kept, client, str(said["registry"]))
        memory = Memory(self.home.folder(kept, client) / SERVED)
        own = self.home.identity(kept, client)
        return MaskedClient(own, registry, policy_of(self.config), memory)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started


def enrol(client: str, folder: Path) -> Identity:
    """Make a client's keys, and the file of what it has served, which is nothing.

    Raises:
        ConfigError: it has keys.
    """
    if not (folder / SERVED).exists():  # else a crash came between the two
        Memory.create(folder / SERVED)
    made = Identity.new(client)
    made.save(folder / IDENTITY)
    return made


def described(keys: Path | None) -> str:
    """What there is to say of the keys that a device has.

    Raises:
        ConfigError: there are none, or they cannot be used.
    """
    said = identified(keys)
    assert keys is not None
    Memory(keys / SERVED).read()
    return said


def _terms(said: Mapping[str, Any]) -> Terms:
    """The terms of a message.

    Raises:
        Refused: it has none.
    """
    if "terms" not in said:
        raise Refused("message: got no terms of a sum, as the cohort is too small for one")
    return _read(str(said["terms"]), json.dumps(said["layout"]))


@lru_cache(4)  # the clients of a process are sent the same
def _read(terms: str, layout: str) -> Terms:
    try:
        data = bytes.fromhex(terms)
    except ValueError:
        raise Refused("terms: cannot be read, takes hexadecimal digits") from None
    return Terms.from_bytes(data, from_json(json.loads(layout)))
