"""The sealed channel at the server: it mixes what it cannot read."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedpers.channels.base import Channel, Method, Mixed, Needs, Opening, Reveals, State, Turn
from fedpers.channels.sealed.check import check_keys, check_method, described
from fedpers.channels.sealed.cipher import ServerCipher
from fedpers.channels.sealed.compare import compare
from fedpers.channels.sealed.groups import UNIT, groups_of, layouts_of
from fedpers.channels.sealed.keys import (
    NEXT_CONTEXT,
    SERVER_FILE,
    deal_keys,
    load_server,
    server_from,
)
from fedpers.channels.sealed.sealed_parts import Group, SealedParts, with_groups
from fedpers.channels.wire import Answers, Question, Wire
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError, FedpersError, RunError
from fedpers.mixing import Mixing
from fedpers.parts import Layout, Part, Parts
from fedpers.records import Row, in_the_clear

log = logging.getLogger("fedpers")

LONE = "the mean of a single update is not opened"
FRESH = {False: ("vector",), True: ("head",)}


class Sealed(Channel):
    """Y = W X on ciphertexts (TenSEAL, BFV or CKKS).

    One common mixture is a sum of what came with the training, where the weights are known before
    it: they are all the same, or by numbers of examples that were reported in an earlier round.
    Else clients keep their update until they are told its weight, and seal the product then.
    Mixtures for single clients are made by the server, from updates sealed for that (three primes).
    """

    name = "sealed"
    reveals = Reveals(
        server="reports; no update, and of mixtures the means that a method has opened",
        nodes="with the common key, whatever is sealed under it",
    )

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.cipher: ServerCipher | None = None
        self.next: ServerCipher | None = None  # from encryption.rotate_at on
        self.wire: Wire | None = None
        self.bytes_per_parameter = 0.0
        self.counts: dict[str, int] = {}  # of examples, as reported last
        self._known: dict[str, float] = {}  # the weights that were sent with the broadcast
        self._weights: dict[str, float] = {}  # by which updates were multiplied before the sealing
        self._opened: Parts | None = None  # the last mixture

    @classmethod
    def check(cls, config: Config, needs: Needs, weighted: str) -> None:
        """Refuse rules and methods that have to read updates, or would not fit."""
        check_method(config, needs)

    @classmethod
    def check_clients(cls, config: Config, needs: Needs, clients: int) -> None:
        """The key has room for so many, or one can be made."""
        check_keys(config, clients, rows=needs.rows)

    @classmethod
    def deal(
        cls, config: Config, needs: Needs, clients: int, server: Path, nodes: Mapping[str, Path]
    ) -> Config:
        """The halves of one key."""
        deal_keys(config.encryption.scheme, clients, needs.rows, server, [*nodes.values()])
        return replace(config, encryption=replace(config.encryption, keys=str(server)))

    @classmethod
    def described(cls, keys: Path | None) -> str:
        """The key that all clients have."""
        return described(keys)

    @cached_property
    def groups(self) -> list[Group]:
        """What clients seal together."""
        return groups_of(self.method)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Of all parts that clients seal."""
        return layouts_of(self.method)

    @property
    def at_once(self) -> bool:
        """Whether updates are sealed with the training, as their weights need not be known."""
        return self.method.needed.rows or self.method.weighted == "equal" or bool(self._known)

    @property
    def later(self) -> bool:
        """Whether clients keep them until then."""
        return not self.at_once

    def open(self, opening: Opening) -> None:
        """Take up the cipher that the nodes' key belongs to.

        Raises:
            FedpersError: nodes with several keys, or not the key of our context.
            ConfigError: parameters without room for so many clients.
        """
        self.wire, said, clients = opening.wire, opening.said, opening.clients
        if self.config.encryption.keys is not None:
            self.cipher = load_server(Path(self.config.encryption.keys) / SERVER_FILE)
        else:
            context = next((str(k["context"]) for k in said.values() if k.get("context")), None)
            if context is None:
                cure = "make keys: fedpers keys new --out DIR"
                raise ConfigError("encryption.keys", None, f"a folder with {SERVER_FILE}", cure)
            self.cipher = server_from(base64.b64decode(context, validate=True))
        if self.config.encryption.rotate_at is not None:
            self.next = self._rotation(Path(self.config.encryption.keys or ""), clients)
        cure = "give all nodes the same client.key, and next.key where keys rotate"
        for node, key in said.items():
            for name, cipher in (("id", self.cipher), ("next", self.next)):
                if cipher is not None and (got := key.get(name)) != cipher.key_id:
                    raise FedpersError(f"node {node} has key {got}, takes {cipher.key_id}; {cure}")
        parameters = self.cipher.parameters
        parameters.check(max(1, clients))
        told = parameters.scheme, self.cipher.key_id, parameters.security
        log.info("encryption: %s, key %s, %d bits of security", *told)

    def _rotation(self, folder: Path, clients: int) -> ServerCipher:
        turn = self.config.encryption.rotate_at
        if self.config.encryption.keys is None:
            takes, cure = "null with a key that is made for the run", "or give encryption.keys"
            raise ConfigError("encryption.rotate_at", turn, takes, cure)
        if self.method.needed.rows:
            takes = "null for a method that mixes rows of several rounds' updates"
            raise ConfigError("encryption.rotate_at", turn, takes)
        cipher = load_server(folder / NEXT_CONTEXT)
        cipher.parameters.check(max(1, clients))
        return cipher

    def admits(self, said: Mapping[str, Any]) -> str | None:
        """It has the key of the run."""
        assert self.cipher is not None
        own, other = self.cipher.key_id, said.get("id")
        return None if other == own else f"key {other}, not {own}"

    def begin(self, server_round: int, cohort: Sequence[str]) -> None:
        """Take up the next key if it is time."""
        turn = self.config.encryption.rotate_at
        if self.next is not None and turn is not None and server_round >= turn:
            self.cipher, self.next = self.next, None
            log.info("encryption: key %s from round %d on", self.cipher.key_id, server_round)

    def header(self, asked: Sequence[str]) -> dict[str, Any]:
        """What is sealed together and when."""
        return {
            "groups": [group.to_json() for group in self.groups],
            "layouts": {name: layout.to_json() for name, layout in self.layouts.items()},
            "mixes_rows": self.method.needed.rows,
            "seal_at_once": self.at_once,
        }

    def foresee(self, clients: Sequence[str]) -> dict[str, float]:
        """Each client's weight, 1 being the largest; none if they cannot be known yet."""
        self._known = {}
        counts = {client: self.counts[client] for client in clients if client in self.counts}
        by_examples = self.method.weighted == "examples"
        if by_examples and len(counts) == len(clients) and any(counts.values()):
            most = max(counts.values())
            self._known = {client: count / most for client, count in counts.items()}
        return self._known

    def accept(self, client: str, sent: Row, update: Row) -> str | None:
        """As far as one can see: sealed as was asked for, under the key of the run."""
        assert self.cipher is not None
        if not isinstance(update, SealedParts):
            return "update: got plain parts, takes sealed ones"
        try:
            found, layouts = update.sealed, self.layouts
            if list(update.groups) != self.groups or update.layouts != layouts:
                return f"update: got other parts than {[list(g.names) for g in self.groups]}"
            if update.divisor != 1:
                return f"update: got divisor {update.divisor:g}, takes 1"
            for group, one in zip(update.groups, found, strict=True):
                size = sum(layouts[name].size for name in group.names)
                if one.size != size:
                    return f"update: got {one.size} values in {list(group.names)}, takes {size}"
                takes = 1.0 if group.unit else self.config.encryption.range
                if one.range != takes:
                    return f"update: got range {one.range:g}, takes {takes:g}"
                one.expect(self.cipher.parameters, self.cipher.key_id, FRESH[group.unit])
                if group.unit:  # not in a sum, which would find it malformed
                    self.cipher.check(one)
        except ClientError as error:
            return f"update: {error}"
        return None

    def gather(
        self, server_round: int, mixing: Mixing, reports: Mapping[str, Any], answers: Answers
    ) -> None:
        """Tell the clients their weights, and have them seal what they kept.

        The updates that came are then all that is in ``answers.rows``, and who failed in
        ``answers.failures``.
        """
        self.counts |= {client: report["examples"] for client, report in reports.items()}
        if self.at_once:
            return
        assert self.wire is not None
        if list(mixing.recipients) != [None]:
            cure = "declare it: Needs(rows=True)"
            raise RunError(f"mixing: got rows for {mixing.recipients[:3]}, takes one; {cure}")
        scaled = (mixing.weights[0] / mixing.weights[0].max()).tolist()
        self._weights = {c: w for c, w in zip(reports, scaled, strict=True) if w > 0}
        questions = {}
        for node, hosted in self.wire.by_node(list(self._weights)).items():
            own = {client: self._weights[client] for client in hosted}
            questions[node] = Question(hosted, [], {"round": server_round, "weights": own})
        came = self.wire.ask("seal", questions)
        answers.rows.clear()
        answers.rows.update(came.rows)
        answers.failures.update(came.failures)
        answers.add(came)
        judged = {client: self.accept(client, row, row) for client, row in came.rows.items()}
        answers.leave_out({client: reason for client, reason in judged.items() if reason})

    def mix(self, turn: Turn, mixing: Mixing, updates: Mapping[str, Row]) -> Mixed:
        """The sum, or the mixtures.

        A ciphertext that turns out to be malformed while it is added costs its client alone.
        """
        columns, failures = list(updates), dict[str, str]()
        good = {c: update for c, update in updates.items() if isinstance(update, SealedParts)}
        if self.at_once and not self.method.needed.rows:
            # Clients without examples have nothing to add.
            weighs = dict(zip(columns, mixing.weights[0].tolist(), strict=True))
            known = self._known or dict.fromkeys(columns, 1.0)
            self._weights = {c: known[c] for c in columns if weighs[c] > 0 and known[c] > 0}
            good = {client: update for client, update in good.items() if client in self._weights}
        while good:
            try:
                if self.method.needed.rows:
                    return Mixed(self._rows(mixing, columns, good), failures)
                total, opened = self.total(good), bool(self.method.needed.derived)
                alone = opened and any(one.terms < 2 for one in total.sealed)
                return Mixed([total], failures, unused=LONE if alone else None)
            except ClientError:
                wrong = self._malformed(good)
                if not wrong:
                    raise
                failures |= wrong
                good = {c: u for c, u in good.items() if c not in wrong}
        raise RunError(f"no update can be added: {next(iter(failures.items()), 'nobody sent one')}")

    def total(self, updates: Mapping[str, SealedParts]) -> SealedParts:
        """The sum of all groups but the unit vectors, to be divided by the sum of the weights."""
        assert self.cipher is not None
        first = next(iter(updates.values()))
        kept = [index for index, group in enumerate(first.groups) if not group.unit]
        sums = [self.cipher.add(update.sealed[k] for update in updates.values()) for k in kept]
        divisor = sum(self._weights[client] for client in updates)
        groups = tuple(first.groups[k] for k in kept)
        layouts = {name: first.layouts[name] for group in groups for name in group.names}
        self._note_bytes(first)
        return SealedParts(layouts, groups, tuple(one.to_bytes() for one in sums), divisor)

    def _note_bytes(self, update: SealedParts) -> None:
        self.bytes_per_parameter = update.nbytes / sum(one.size for one in update.sealed)

    def _rows(
        self, mixing: Mixing, columns: list[str], good: Mapping[str, SealedParts]
    ) -> list[Row]:
        weights = mixing.weights[:, [columns.index(client) for client in good]]
        weights = weights / weights.sum(dim=1, keepdim=True)
        first = next(iter(good.values()))
        self._note_bytes(first)
        names = [n for group in first.groups if not group.unit for n in group.names]
        return self.mix_slots(weights, list(good.values()), names)

    def _malformed(self, updates: Mapping[str, SealedParts]) -> dict[str, str]:
        assert self.cipher is not None
        wrong = {}
        for client, update in updates.items():
            try:
                for group, one in zip(update.groups, update.sealed, strict=True):
                    if not group.unit:
                        self.cipher.add([one])
            except ClientError as error:
                wrong[client] = f"update: {error}"
        return wrong

    def reveal(self, row: Row) -> Parts:
        """Have one node open a mean; the next is asked if it fails."""
        if isinstance(row, Parts):
            return row
        assert self.wire is not None
        reason = "there is no node"
        for node in self.wire.nodes:
            came = self.wire.ask("open", {node: Question([], [row], {})})
            try:
                if came.failures or not came.rows:
                    raise ClientError(next(iter(came.failures.values()), "it sent nothing"))
                (opened,) = came.rows.values()
                parts = in_the_clear(opened)
                if parts.layouts != row.layouts or parts.first_not_finite():
                    raise ClientError(f"node {node} opened other parts than were sent")
                self._opened = parts
                return parts.only(self.method.layouts)
            except (ClientError, ValueError) as error:
                reason = str(error)
        raise RunError(f"no node could open a mean: {reason}")

    def derived(self, name: str) -> Part:
        """As the clients made it of their updates."""
        if self._opened is None:
            raise ClientError(f"derived: got {name!r} before a mixture was revealed")
        return self._opened[name]

    def compare(
        self, models: Mapping[str, Row], weights: Callable[[Mapping[str, Parts]], Tensor]
    ) -> dict[str, Tensor]:
        """Each client's own node opens the inner products of its unit vectors with the others' and
        returns what the method's client side makes of them: the server learns that, and no head."""
        assert self.wire is not None and self.cipher is not None
        units = {c: m.of([UNIT]) for c, m in models.items() if isinstance(m, SealedParts)}
        return compare(self.wire, self.cipher, units)

    def mix_slots(self, weights: Tensor, updates: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """Products of weights and ciphertexts."""
        assert self.cipher is not None
        kept = [update.of(names) for update in updates if isinstance(update, SealedParts)]
        mixed: list[list[bytes]] = [[] for _ in weights]
        for index in range(len(kept[0].groups)):
            found = self.cipher.mix(weights, [update.sealed[index] for update in kept])
            for row, one in zip(mixed, found, strict=True):
                row.append(one.to_bytes())
        return [SealedParts(kept[0].layouts, kept[0].groups, tuple(row)) for row in mixed]

    def join(self, row: Row, update: Row, names: Sequence[str]) -> Row:
        """Both one's groups."""
        assert isinstance(row, SealedParts) and isinstance(update, SealedParts)
        return with_groups(row, update.of(names))

    def state(self) -> State:
        """The numbers of examples, which are the next round's weights."""
        return {}, {"counts": self.counts}

    def load_state(self, groups: Mapping[str, Row], values: Mapping[str, Any]) -> None:
        """Refuse to go on with parts that were sealed under another key than the nodes have."""
        assert self.cipher is not None
        sealed = [row for row in groups.values() if isinstance(row, SealedParts)]
        ids = {one.key_id for row in sealed for one in row.sealed}
        own = {cipher.key_id for cipher in (self.cipher, self.next) if cipher is not None}
        if other := ids - own:
            self.close()
            takes = f"{other.pop()}, under which the checkpoint is sealed"
            cure = "a key made for a run is thrown away when it ends: give one with encryption.keys"
            raise ConfigError("encryption.keys", self.cipher.key_id, takes, cure)
        self.counts = values.get("counts", {})  # a checkpoint of an earlier version

    def figures(self) -> dict[str, Any]:
        """The report's figures on encryption."""
        assert self.cipher is not None
        parameters = self.cipher.parameters
        figures = {
            "enabled": True,
            "scheme": parameters.scheme,
            "bytes_per_parameter": self.bytes_per_parameter,
            "security_bits": parameters.security,
            "key_id": self.cipher.key_id,
        }
        return {"encryption": figures}

    def notes(self) -> list[str]:
        """What times tell."""
        told = self.config.evaluation.diagnostics
        return [] if told else ["the clients' times are rounded down to powers of two"]

    def close(self) -> None:
        """Have the nodes throw away a key that was made for this run."""
        if self.config.encryption.keys is None and self.wire is not None:
            self.wire.ask("forget", {node: Question([], [], {}) for node in self.wire.nodes})
