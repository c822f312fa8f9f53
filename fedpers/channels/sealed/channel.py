"""The sealed channel at the server: it mixes what it cannot read."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fedpers.channels.base import Channel, Method, Mixed, Needs, Opening, Reveals, State, Turn
from fedpers.channels.identity.home import deal_identities, identified, new_identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.sealed import sums
from fedpers.channels.sealed.accepting import as_asked_for, check_signed
from fedpers.channels.sealed.asking import Asking
from fedpers.channels.sealed.check import check_keys, check_method, described
from fedpers.channels.sealed.cipher import ServerCipher
from fedpers.channels.sealed.culprits import Sets, culprits
from fedpers.channels.sealed.groups import UNIT, groups_of, layouts_of
from fedpers.channels.sealed.keys import (
    deal_keys,
)
from fedpers.channels.sealed.meeting import (
    cipher_for,
    deployed,
    next_cipher,
    registry_for,
    stranger,
)
from fedpers.channels.sealed.sealed_parts import Group, SealedParts, with_groups
from fedpers.channels.sealed.statement import Statement
from fedpers.channels.wire import Answers, Question, Wire
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError, FedpersError, RunError
from fedpers.mixing import Mixing
from fedpers.parts import Layout, Part, Parts
from fedpers.records import Row

log = logging.getLogger("fedpers")

LONE = "the mean of a single update is not opened"
MUTE = "no node tells whether the sum opens"
SHUT = "the sum does not open, and nobody can tell whose update spoils it"


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
        self.run, self.round, self.registry = "", 0, Registry([])
        self._state, self._resumed = Path(), False  # of what outlives rounds

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
        """The halves of one key, and each client's identity."""
        deal_keys(config.encryption.scheme, clients, needs.rows, server, [*nodes.values()])
        deal_identities(new_identity, server, nodes)
        return replace(config, encryption=replace(config.encryption, keys=str(server)))

    @classmethod
    def described(cls, keys: Path | None) -> str:
        """The key that all clients have, and whose identity."""
        return f"{described(keys)}; {identified(keys)}"

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
        self.run, self._state, self._resumed = opening.wire.run, opening.state, opening.resumed
        settings, rows = self.config.encryption, self.method.needed.rows
        self.cipher = cipher_for(settings, said.values())
        self.next = next_cipher(settings, clients, rows=rows)
        cure = "give all nodes the same client.key, and next.key where keys rotate"
        for node, key in said.items():
            for name, cipher in (("id", self.cipher), ("next", self.next)):
                if cipher is not None and (got := key.get(name)) != cipher.key_id:
                    raise FedpersError(f"node {node} has key {got}, takes {cipher.key_id}; {cure}")
        self.registry = registry_for(settings, said.values())
        parameters = self.cipher.parameters
        parameters.check(max(1, clients))
        told = parameters.scheme, self.cipher.key_id, parameters.security
        log.info("encryption: %s, key %s, %d bits of security", *told)

    def admits(self, said: Mapping[str, Any]) -> str | None:
        """It has the key of the run, and its clients the identities that are pinned."""
        assert self.cipher is not None
        own, other = self.cipher.key_id, said.get("id")
        return f"key {other}, not {own}" if other != own else stranger(self.registry, said)

    def begin(self, server_round: int, cohort: Sequence[str]) -> None:
        """Take up the next key if it is time."""
        self.round = server_round
        turn = self.config.encryption.rotate_at
        if self.next is not None and turn is not None and server_round >= turn:
            self.cipher, self.next = self.next, None
            log.info("encryption: key %s from round %d on", self.cipher.key_id, server_round)

    def header(self, asked: Sequence[str]) -> dict[str, Any]:
        """What is sealed together and when, and whose signatures count."""
        return {
            **({} if deployed(self.config.encryption) else {"registry": self.registry.to_json()}),
            "groups": [group.to_json() for group in self.groups],
            "layouts": {name: layout.to_json() for name, layout in self.layouts.items()},
            "mixes_rows": self.method.needed.rows,
            "seal_at_once": self.at_once,
        }

    def foresee(self, clients: Sequence[str]) -> dict[str, float]:
        """Each client's weight, 1 being the largest; none if they cannot be known yet."""
        self._known = {}
        counts = {client: self.counts[client] for client in clients if client in self.counts}
        by_examples = self.method.weighted == "examples" and not self.method.needed.rows
        if by_examples and len(counts) == len(clients) and any(counts.values()):
            most = max(counts.values())
            self._known = {client: count / most for client, count in counts.items()}
        return self._known

    def accept(self, client: str, sent: Row, update: Row) -> str | None:
        """As far as one can see: sealed as was asked for, under the key of the run."""
        assert self.cipher is not None
        if not isinstance(update, SealedParts):
            return "update: got plain parts, takes sealed ones"
        weight = self._weights.get(client) if self.later else self._known.get(client)
        word = Statement(client, self.round, 1.0 if weight is None else weight, b"")
        known = self.groups, self.layouts, self.cipher, self.config.encryption.range
        try:
            if (reason := as_asked_for(update, *known)) is None:
                check_signed(update, self.registry, self.run, word)
        except ClientError as error:
            return f"update: {error}"
        return reason

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
        """The sum, or the mixtures, of updates whose sum opens well.

        A ciphertext that turns out to be malformed while it is added costs its client alone; so
        does one that spoils the sum, which is found out by sums of others.
        """
        columns = list(updates)
        good = {c: update for c, update in updates.items() if isinstance(update, SealedParts)}
        if self.method.needed.rows:
            self._weights = dict.fromkeys(columns, 1.0)
        elif self.at_once:
            # Clients without examples have nothing to add.
            weighs = dict(zip(columns, mixing.weights[0].tolist(), strict=True))
            known = self._known or dict.fromkeys(columns, 1.0)
            self._weights = {c: known[c] for c in columns if weighs[c] > 0 and known[c] > 0}
            good = {client: update for client, update in good.items() if client in self._weights}
        good, total, mixed = self._well_opening(good)
        if total is None or mixed.unused:
            return mixed
        self.bytes_per_parameter = sums.per_parameter(next(iter(good.values())))
        if self.method.needed.derived:
            mixed.unused = self._open_mean(total)
        mixed.rows = self._rows(mixing, columns, good) if self.method.needed.rows else [total]
        return mixed

    def _well_opening(
        self, good: dict[str, SealedParts]
    ) -> tuple[dict[str, SealedParts], SealedParts | None, Mixed]:
        """The updates whose sum opens well, their sum, and whom that cost what."""
        assert self.cipher is not None
        mixed, total, least = Mixed(), None, max(1, self.config.strategy.min_clients)
        while good:
            try:
                total = sums.total(self.cipher, good, self._weights)
                told = self._asking.opens([total])
                wrong = {} if told is None or all(told) else self._spoiling(good)
            except ClientError:
                told, wrong = [False], sums.malformed(self.cipher, good)
            if told == [True]:
                break
            if not wrong:
                mixed.unused = MUTE if told is None else SHUT
                return good, None, mixed
            mixed.failures |= wrong
            good = {c: update for c, update in good.items() if c not in wrong}
        if not good or len(good) < self.fewest or (mixed.failures and len(good) < least):
            least = max(least, self.fewest)
            client, why = next(iter(mixed.failures.items()), ("none", "nobody has anything to add"))
            few = f"{len(good)} of at least {least} clients are left"
            mixed.unused = f"{few}; client {client}: {why}"
        return good, total, mixed

    @property
    def _asking(self) -> Asking:
        assert self.wire is not None and self.cipher is not None
        grid = self.config.encryption.range * self.cipher.parameters.grid
        return Asking(self.wire, self.run, self.registry, self.round, grid)

    def _spoiling(self, updates: Mapping[str, SealedParts]) -> dict[str, str]:
        """Whose updates keep the sum from opening, as far as can be told."""
        cipher = self.cipher
        assert cipher is not None

        def opens(sets: Sets) -> list[bool] | None:
            some_of = [{c: updates[c] for c in some} for some in sets]
            return self._asking.opens([sums.total(cipher, s, self._weights) for s in some_of])

        found = culprits(list(updates), opens, self.config.strategy.min_clients) or ()
        return dict.fromkeys(found, "update: no sum with it opens")

    def _open_mean(self, total: SealedParts) -> str | None:
        """Have the mean opened that the method needs in the clear; why it is not.

        It is opened once a round: a server that is started anew goes by what it was told before.
        """
        if any(one.terms < 2 for one in total.sealed):
            return LONE
        before = self._state / f"opened-{self.run}-{self.round}.safetensors"
        if self._resumed and before.exists():
            self._opened = Parts.load(before)
            return None
        self._opened = self._asking.open(total)
        if self._opened is None:
            return "no two nodes open the same mean"
        self._state.mkdir(parents=True, exist_ok=True)
        for other in self._state.glob(f"opened-{glob.escape(self.run)}-*.safetensors"):
            other.unlink()
        self._opened.save(before)
        return None

    def _rows(
        self, mixing: Mixing, columns: list[str], good: Mapping[str, SealedParts]
    ) -> list[Row]:
        weights = mixing.weights[:, [columns.index(client) for client in good]]
        weights = weights / weights.sum(dim=1, keepdim=True)
        first = next(iter(good.values()))
        names = [n for group in first.groups if not group.unit for n in group.names]
        return self.mix_slots(weights, list(good.values()), names)

    def reveal(self, row: Row) -> Parts:
        """As nodes open it; of a method with derived parts they have, when it was mixed."""
        if isinstance(row, Parts):
            return row
        assert isinstance(row, SealedParts)
        if not self.method.needed.derived and (why := self._open_mean(row)) is not None:
            raise RunError(f"a mean cannot be opened: {why}")
        if self._opened is None:
            raise RunError("reveal: got nothing that was mixed")
        return self._opened.only(self.method.layouts)

    def derived(self, name: str) -> Part:
        """As the clients made it of their updates."""
        if self._opened is None:
            raise ClientError(f"derived: got {name!r} before a mixture was revealed")
        return self._opened[name]

    def compare(
        self, models: Mapping[str, Row], weights: Callable[[Mapping[str, Parts]], Tensor]
    ) -> dict[str, Tensor]:
        """Two nodes open the unit vectors and return what the method's client side makes of their
        inner products: the server learns that, and no vector."""
        units = {c: m.of([UNIT]) for c, m in models.items() if isinstance(m, SealedParts)}
        return self._asking.similar(units)

    def mix_slots(self, weights: Tensor, updates: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """Products of weights and ciphertexts."""
        assert self.cipher is not None
        sealed = [update for update in updates if isinstance(update, SealedParts)]
        return sums.mixtures(self.cipher, weights, sealed, names)

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
