"""Masked sums at the nodes: clients with identities, each of which masks and helps to unmask."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedpers.channels.identity.encoding import Refused, untable
from fedpers.channels.identity.home import IDENTITY, Home, identified
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.check import policy_of
from fedpers.channels.masked.client import MaskedClient, Plan, carry_out
from fedpers.channels.masked.envelope import Envelope
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.noise import check_survivors, check_terms, noised_values
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

    What was served is beside a device's keys, or in a simulation beside its clients' stores.

    Args:
        config: the run's settings.
        sources: of what is drawn to round a value, and of noise.
        keys: the folder of a device's owner; None in a simulation.
    """

    adds_noise = True

    def __init__(self, config: Config, sources: Sources, keys: Path | None = None) -> None:
        super().__init__()
        self.config, self.sources, self.home = config, sources, Home(_enrol_here, keys)
        self.kinds = {"advertise": self._advertise, "sign": self._sign, "reveal": self._reveal}
        self._seeds: tuple[Terms | None, dict[str, bytes | Exception]] = None, {}  # of a message

    def introduction(
        self, kept: Kept, clients: Sequence[str], terms: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The clients' public halves, and the last tag that any of them has served."""
        identities = [self.home.identity(kept, client) for client in clients]
        served = [self._memory(kept, client).of(client).tag for client in clients]
        registry = Registry([one.public for one in identities])
        return {"identities": registry.to_json(), "tag": max(served, default=0)}

    def arrive(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> list[Parts]:
        """As it came: sums are for all to see."""
        return [in_the_clear(row) for row in rows]

    def derives(self, terms: Mapping[str, Any], sent: Sequence[str]) -> list[str]:
        """What the server sums beside what was sent."""
        return [str(name) for name in terms.get("derived", [])]

    def leave(self, kept: Kept, leaving: Leaving) -> Row | None:
        """Masked, with the report inside."""
        client, server_round, update, report, body, sent = leaving
        said = body.get("channel", {})
        if not update and "terms" not in said:
            return update  # a method that shares nothing
        terms, most = _terms(said), self.config.encryption.masks.most_examples
        # Rounding is drawn anew each time, unless somebody has to see the same bits twice.
        draws = self.sources if self.config.privacy.enabled else known(self.config.seed)
        source = draws("rounding", server_round, client)
        with self._timed("encrypt"):
            if self.config.privacy.by_client:
                shares = check_terms(terms, self.config, said["noise"])
                values, weight = noised_values(terms.layout, shares, update, sent, source), 1.0
            else:
                values = values_of(terms.layout, update, report)
                weight = weight_of(report, str(said["weights"]), most)
            words = terms.layout.quantised(values, weight, source)
            own = self._own_seed(kept, terms, client, body)
            return Envelope(self._client(kept, client, said).masked(terms, own, words))

    def _own_seed(self, kept: Kept, terms: Terms, client: str, body: Mapping[str, Any]) -> bytes:
        """A client's own seed for the one upload that it makes of this message. All clients of the
        message are noted at once, as each writing takes a while.

        Raises:
            Refused: the client may not upload.
        """
        if self._seeds[0] != terms or client not in self._seeds[1]:
            named = [str(name) for name in body.get("clients", [client])]
            plans = self._planned(kept, named, body["channel"], lambda one, _: one.uploading(terms))
            self._seeds = terms, plans
        own = self._seeds[1].pop(client)
        if isinstance(own, Exception):
            raise own
        return own

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
        return self._each(kept, rows, body, lambda client, terms, _: client.advertising(terms))

    def _sign(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """ConsistencyCheck: each client's signature under the survivors."""
        survivors = _table(str(body["survivors"]), "survivors")

        def signing(client: MaskedClient, terms: Terms, _: Row | None) -> Plan:
            if self.config.privacy.by_client:
                check_survivors(terms, self.config, client.policy, survivors)
            return client.signing(terms, survivors)

        return self._each(kept, rows, body, signing)

    def _reveal(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Unmasking: each client's shares for that one set."""
        survivors = _table(str(body["survivors"]), "survivors")
        signatures = _table(str(body["signatures"]), "signatures")

        def shares(client: MaskedClient, terms: Terms, row: Row | None) -> Plan:
            if not isinstance(row, Envelope):
                raise Refused("boxes: got none, takes a client's own")
            return client.revealing(terms, survivors, signatures, untable(row.data, "boxes"))

        return self._each(kept, rows, body, shares)

    def _each(
        self,
        kept: Kept,
        rows: Sequence[Row],
        body: Mapping[str, Any],
        plan: Callable[[MaskedClient, Terms, Row | None], Plan],
    ) -> tuple[list[Row], dict[str, Any]]:
        """One step of each client named, with its row if there are any."""
        named, said = [str(client) for client in body["clients"]], body["channel"]
        own = dict(zip(named, rows, strict=True)) if rows else {}

        def planned(client: MaskedClient, terms: Terms) -> Plan:
            return plan(client, terms, own.get(client.me))

        with self._timed("encrypt"):
            answers = self._planned(kept, named, said, planned)
        failures = {c: answer for c, answer in answers.items() if isinstance(answer, Exception)}
        given = [Envelope(answer) for answer in answers.values() if isinstance(answer, bytes)]
        return list[Row](given), {"failures": failures, **self.take_seconds()}

    def _planned(
        self,
        kept: Kept,
        clients: Sequence[str],
        said: Mapping[str, Any],
        plan: Callable[[MaskedClient, Terms], Plan],
    ) -> dict[str, bytes | Exception]:
        """A step of each client, or why there is none: that costs itself, not the node's others."""
        plans, failed = list[Plan](), dict[str, bytes | Exception]()
        for name in clients:
            try:
                plans.append(plan(self._client(kept, name, said), _terms(said)))
            except Exception as error:
                failed[name] = error
        found = carry_out(plans) | failed
        return {name: found[name] for name in clients}

    def _client(self, kept: Kept, client: str, said: Mapping[str, Any]) -> MaskedClient:
        """A client under the registry that it has pinned.

        Raises:
            Refused: the server shows another.
        """
        registry = self.home.registry(kept, client, str(said["registry"]))
        own, memory = self.home.identity(kept, client), self._memory(kept, client)
        return MaskedClient(own, registry, policy_of(self.config), memory)

    def _memory(self, kept: Kept, client: str) -> Memory:
        keys = self.home.keys
        return Memory(keys / SERVED) if keys else _memory_of_all(kept.folder(client).parent)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started


def enrol(client: str, folder: Path) -> Identity:
    """Make a device's keys, and note that its client has served nothing.

    Raises:
        ConfigError: it has keys.
    """
    return _enrolled(client, folder, Memory(folder / SERVED))


def _enrol_here(client: str, folder: Path) -> Identity:
    """The same in a simulation."""
    return _enrolled(client, folder, _memory_of_all(folder.parent))


def _enrolled(client: str, folder: Path, memory: Memory) -> Identity:
    if not (memory.path.exists() and client in memory.read()):  # else a crash came between the two
        memory.enrol([client])
    made = Identity.new(client)
    made.save(folder / IDENTITY)
    return made


def _memory_of_all(stores: Path) -> Memory:
    """Of all clients of a simulation, in which one writing is for all that a message asks."""
    return Memory(stores / SERVED, durable=False)


def described(keys: Path | None) -> str:
    """What there is to say of the keys that a device has.

    Raises:
        ConfigError: there are none, or they cannot be used.
    """
    said = identified(keys)
    assert keys is not None
    Memory(keys / SERVED).of(Identity.load(keys / IDENTITY).client)
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


@lru_cache(4)
def _table(text: str, what: str) -> Mapping[str, bytes]:
    """Names and bytes that all clients are shown.

    Raises:
        Refused: they cannot be read.
    """
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise Refused(f"{what}: cannot be read, takes hexadecimal digits") from None
    return untable(data, what)
