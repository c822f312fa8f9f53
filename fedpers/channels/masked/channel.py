"""Masked sums at the server: it has the sum of a cohort's updates and reports, and no client's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpers.channels.base import Channel, Method, Mixed, Needs, Opening, Reveals, State, Turn
from fedpers.channels.identity.encoding import Refused, table
from fedpers.channels.identity.home import deal_identities, registry_in
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.check import check_cohorts, check_method, policy_of
from fedpers.channels.masked.envelope import Envelope
from fedpers.channels.masked.messages import Dropped
from fedpers.channels.masked.node import described, enrol
from fedpers.channels.masked.noise import shares_of
from fedpers.channels.masked.quantise import WEIGHT, Layout
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Session, Terms
from fedpers.channels.masked.vector import layout_of, mean_report, noised_layout_of, to_json
from fedpers.channels.wire import Question, Wire
from fedpers.cohorts import cohort_of
from fedpers.config import Config
from fedpers.errors import ConfigError, FedpersError, RunError
from fedpers.mixing import Mixing
from fedpers.parts import Layout as PartLayout
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import secret
from fedpers.records import Row, in_the_clear

log = logging.getLogger("fedpers")


class Masked(Channel):
    """The mean of updates under pairwise masks, which only the survivors together take away.

    Updates are added as they come. When all are in, the survivors sign their set, and give shares
    for it: two short exchanges. Each round has a tag above all that were served, so one that is
    repeated, or resumed, never meets its own pads.
    """

    name = "masked"
    reveals = Reveals(
        server="sums over a cohort, of updates and of all that is reported; no client's",
        nodes="the mixtures that they receive",
    )
    hides_reports = True
    adds_noise = True

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.policy = policy_of(self.config)
        self.wire: Wire | None = None
        self.registry = Registry([])
        self.run = ""
        self.tag = 0  # the last one that was used, or that a client says it has served
        self.bytes_per_parameter = 0.0
        self.clients = 0
        self.sigma: float | None = None  # of the noise that clients add, see ``take_noise``
        self._terms: Terms | None = None  # of the sum that is under way
        self._server: MaskedServer | None = None
        self._derived: dict[str, Part] = {}  # means of the last round

    @classmethod
    def check(cls, config: Config, needs: Needs, weighted: str) -> None:
        """Refuse a method whose server needs more than sums."""
        check_method(config, needs, weighted)

    @classmethod
    def check_clients(cls, config: Config, needs: Needs, clients: int) -> None:
        """Cohorts are not below the minimum that clients stand on."""
        check_cohorts(config, clients)

    @classmethod
    def deal(
        cls, config: Config, needs: Needs, clients: int, server: Path, nodes: Mapping[str, Path]
    ) -> Config:
        """Each client's own keys, and all public halves."""
        deal_identities(enrol, server, nodes)
        return replace(config, encryption=replace(config.encryption, keys=str(server)))

    @classmethod
    def described(cls, keys: Path | None) -> str:
        """Whose keys they are."""
        return described(keys)

    @property
    def layouts(self) -> dict[str, PartLayout]:
        """Of all parts that clients mask."""
        return {**self.method.layouts, **self.method.derived_layouts()}

    def layout(self, clients: int) -> Layout:
        """Of the vectors of so many clients.

        Raises:
            ConfigError: the bits of a value are too few for the noise.
        """
        if self.sigma is not None:
            size = sum(x.size for x in self.layouts.values())
            shares = shares_of(self.config, self.sigma, clients, size)
            return noised_layout_of(self.layouts, shares, clients)
        return layout_of(self.layouts, self.method.reports, self.config.encryption, clients)

    def open(self, opening: Opening) -> None:
        """Pin the registry: the deployment's, or in a simulation what the clients say of
        themselves.

        Raises:
            ConfigError: two clients with one key, or a file that cannot be read.
            FedpersError: a client whose key is not the one in the registry.
        """
        self.wire, self.run = opening.wire, secret("run").bits(16).hex()
        self.clients = opening.clients
        offered = [Registry.from_json(str(one["identities"])) for one in opening.said.values()]
        if self.config.encryption.keys is not None:
            self.registry = registry_in(Path(self.config.encryption.keys))
        else:
            self.registry = Registry(p for one in offered for p in one.publics.values())
        for one in opening.said.values():
            if reason := self.admits(one):
                raise FedpersError(reason)
        told = len(self.registry.publics), self.policy.minimum
        log.info("encryption: masked sums of %d clients, of %d or more in each", *told)

    def admits(self, said: Mapping[str, Any]) -> str | None:
        """Its clients have the keys that are pinned."""
        try:
            for public in Registry.from_json(str(said["identities"])).publics.values():
                self.registry.check(public)
            self.tag = max(self.tag, int(said["tag"]))
        except (KeyError, TypeError, ValueError, FedpersError) as error:
            return str(error)
        return None

    def take_noise(self, sigma: float) -> None:
        """Have clients add noise, and look whether it fits.

        Raises:
            ConfigError: the bits of a value are too few for it.
        """
        self.sigma = sigma
        cohort = cohort_of(self.config, self.clients)
        for field in self.layout(max(1, cohort)).fields:
            field.width(cohort)

    def corrupted(self, cohort: int) -> int:
        """As the policy has it."""
        return self.policy.corrupted(cohort)

    def begin(self, server_round: int, cohort: Sequence[str]) -> None:
        """Propose the round's terms, under a new tag; where not all pairs mask ask for what the
        graph is made of, again without those who stay silent."""
        self._terms = self._server = None
        names = tuple(sorted(client for client in cohort if client in self.registry.publics))
        for _ in range(self.policy.attempts):
            self.tag += 1
            layout = self.layout(max(1, len(names)))
            self._terms = Terms(self.run, server_round, self.tag, names, layout)
            try:
                if not Session(self._terms, self.registry, self.policy).sparse:
                    break
                given = self._contributions(names)
                if given.keys() >= set(names):
                    ordered = tuple(given[name] for name in names)
                    self._terms = replace(self._terms, contributions=ordered)
                    break
                names = tuple(name for name in names if name in given)
            except Refused as error:
                log.warning("round %d: %s", server_round, error)
                names = ()
                break
        else:
            names = ()
        if not names:
            self._terms = None
            return
        assert self._terms is not None
        self._server = MaskedServer(self._terms, self.registry, self.policy)

    def _contributions(self, names: Sequence[str]) -> dict[str, bytes]:
        """AdvertiseKeys: what clients give to the graph's seed, as far as it is theirs."""
        given = {}
        for client, data in self._ask("advertise", names, {}):
            try:
                self.registry.check_contribution(client, self.tag, data)
                given[client] = data
            except Refused as error:
                log.warning("client %s is left out of the sum: %s", client, error)
        return given

    def header(self, asked: Sequence[str]) -> dict[str, Any]:
        """The terms of the sum that is under way, if one is."""
        if self._terms is None:
            return {"masks": True}
        return {
            "masks": True,
            "terms": self._terms.to_bytes().hex(),
            "layout": to_json(self._terms.layout),
            "registry": self.registry.to_json(),
            "weights": self._weights,
            "derived": list(self.method.needed.derived),
        }

    @property
    def _weights(self) -> str:
        return "equal" if self.method.weighted == "equal" else "examples"

    def accept(self, client: str, sent: Row, update: Row) -> str | None:
        """Add a client's vector to the sum."""
        if self._server is None:
            return "update: got one, and no sum is under way"
        if not isinstance(update, Envelope):
            return "update: got plain parts, takes a masked vector"
        try:
            self._server.receive(client, update.data)
        except Refused as error:
            return f"update: {error}"
        return None

    def mix(self, turn: Turn, mixing: Mixing, updates: Mapping[str, Row]) -> Mixed:
        """Name the survivors, have them sign and unmask, and divide the sum by its weights."""
        server, self._server = self._server, None
        if server is None:
            return Mixed(unused="no sum is under way")
        try:
            survivors = server.close()
            self._signed(server)
            self._revealed(server)
            layout = server.session.terms.layout
            sums = layout.sums(server.unmask(), len(survivors))
        except Dropped as error:
            return Mixed(unused=str(error))
        finally:
            self._terms = None
            for client in sorted(server.suspects):
                log.warning("round %d: client %s sent a wrong share", turn.server_round, client)
        weight = float(sums[WEIGHT][0])
        if weight <= 0:
            return Mixed(unused="no client has examples")
        means = {name: sums[f"part {name}"] / weight for name in self.layouts}
        if self.sigma is not None:  # of changes
            for name, part in in_the_clear(turn.sent).items():
                means[name] += part.vector.double().numpy()
        parts = {
            name: Part(x, torch.from_numpy(means[name]).to(x.dtype))
            for name, x in self.layouts.items()
        }
        self._derived = {name: parts.pop(name) for name in self.method.needed.derived}
        parameters = sum(x.size for x in self.layouts.values())
        self.bytes_per_parameter = next(iter(updates.values())).nbytes / parameters
        most = self.config.encryption.masks.most_examples
        report = mean_report(layout, sums, len(survivors), self._weights, most)
        return Mixed([Parts(parts)], report=report)

    def _signed(self, server: MaskedServer) -> None:
        """ConsistencyCheck, of all survivors."""
        named = {"survivors": table(server.survivors).hex()}
        for client, data in self._ask("sign", [*server.survivors], named):
            with _at_its_cost(client):
                server.receive_signature(client, data)

    def _revealed(self, server: MaskedServer) -> None:
        """Unmasking, by those who signed.

        Raises:
            Dropped: fewer than a quorum did.
        """
        signatures = table(server.signatures).hex()
        named = {"survivors": table(server.survivors).hex(), "signatures": signatures}
        rows = {client: Envelope(table(boxes)) for client, boxes in server.boxes().items()}
        for client, data in self._ask("reveal", list(rows), named, rows):
            with _at_its_cost(client):
                server.receive_shares(client, data)

    def _ask(
        self,
        kind: str,
        clients: Sequence[str],
        body: Mapping[str, Any],
        rows: Mapping[str, Row] | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """What clients answer to a message each."""
        assert self.wire is not None
        questions = {}
        for node, hosted in self.wire.by_node(clients).items():
            questions[node] = Question(hosted, [rows[c] for c in hosted] if rows else [], body)
        came = self.wire.ask(kind, questions)
        for client, reason in came.failures.items():
            log.warning("%s: client %s: %s", kind, client, reason)
        for client, row in came.rows.items():
            if isinstance(row, Envelope):
                yield client, row.data

    def reveal(self, row: Row) -> Parts:
        """As it is: the server has the mean."""
        return in_the_clear(row)

    def derived(self, name: str) -> Part:
        """As the clients made it of their updates, in the same sum."""
        return self._derived[name]

    def compare(
        self, models: Mapping[str, Row], weights: Callable[[Mapping[str, Parts]], Tensor]
    ) -> dict[str, Tensor]:
        """Refused before the run."""
        raise RunError("masked sums: nothing can be compared")

    def mix_slots(self, weights: Tensor, updates: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """Refused before the run."""
        raise RunError("masked sums: single updates cannot be mixed")

    def join(self, row: Row, update: Row, names: Sequence[str]) -> Row:
        """Refused before the run."""
        raise RunError("masked sums: there are no single updates")

    def state(self) -> State:
        """Which run it is, the last tag, and the registry that was pinned."""
        registry = json.loads(self.registry.to_json())
        return {}, {"run": self.run, "tag": self.tag, "registry": registry}

    def load_state(self, groups: Mapping[str, Row], values: Mapping[str, Any]) -> None:
        """Refuse to go on with other keys than the run began with."""
        pinned = Registry.from_json(json.dumps(values["registry"]))
        for public in self.registry.publics.values():
            try:
                pinned.check(public)
            except Refused as error:
                raise ConfigError(
                    "registry", str(error), "the keys that the run began with"
                ) from None
        self.registry, self.run = pinned, str(values["run"])
        self.tag = max(self.tag, int(values["tag"]))

    def figures(self) -> dict[str, Any]:
        """The report's figures on encryption."""
        figures = {
            "enabled": True,
            "scheme": "masked",
            "bytes_per_parameter": self.bytes_per_parameter,
            "security_bits": 128,
            "key_id": None,
        }
        return {"encryption": figures}


@contextmanager
def _at_its_cost(client: str) -> Iterator[None]:
    """What is refused costs its sender's help alone."""
    try:
        yield
    except Refused as error:
        log.warning("client %s does not help to unmask: %s", client, error)
