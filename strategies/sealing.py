"""The server's side of encrypted aggregation: it mixes what it cannot read."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedpers.channels.sealed.keys import SERVER_FILE
from fedpers.channels.sealed.sealed_parts import Group, SealedParts
from fedpers.errors import ClientError, ConfigError, FedpersError, RunError
from fedpers.parts import Layout, Parts
from fedpers.records import Row, in_the_clear, pack
from strategies.exchange import collect, read_reply, send_and_receive
from strategies.mixing import Mixing

if TYPE_CHECKING:
    from fedpers.channels.sealed import ServerCipher
    from strategies.client_level import ClientLevel
    from strategies.method import Method

log = logging.getLogger("fedpers")

NEXT_FILE = "next.context"


class Sealing:
    """Y = W X on ciphertexts, for the strategy that it belongs to.

    One common row is a sum of what came with the training, where the weights are known before it:
    they are all the same, or by numbers of examples that were reported in an earlier round. Else
    clients keep their update until they are told its weight, and seal the product then. Rows for
    single clients are mixed by the server, from updates sealed for that (three primes).

    Args:
        strategy: whose updates these are.
    """

    def __init__(self, strategy: Method) -> None:
        self.strategy, self.config = strategy, strategy.config
        self.cipher: ServerCipher | None = None
        self.next: ServerCipher | None = None  # from encryption.rotate_at on
        self.grid: Grid | None = None
        self.bytes_per_parameter = 0.0
        self.counts: dict[str, int] = {}  # of examples, as reported last
        self._known: dict[str, float] = {}  # the weights that were sent with the broadcast
        self._weights: dict[str, float] = {}  # by which updates were multiplied before the sealing

    @property
    def groups(self) -> list[Group]:
        """What clients seal together."""
        return self.strategy.sealed_groups()

    @property
    def at_once(self) -> bool:
        """Whether updates are sealed with the training, as their weights need not be known."""
        return self.strategy.mixes_rows or self.strategy.equal_weights or bool(self._known)

    def foresee(self, clients: Sequence[str]) -> dict[str, float]:
        """Each client's weight in the round that begins, 1 being the largest; none if they cannot
        be known yet."""
        self._known = {}
        counts = {client: self.counts[client] for client in clients if client in self.counts}
        if self.strategy.weighs_examples and len(counts) == len(clients) and any(counts.values()):
            most = max(counts.values())
            self._known = {client: count / most for client, count in counts.items()}
        return self._known

    def header(self) -> dict[str, Any]:
        """What clients are told with every message."""
        groups = [group.to_json() for group in self.groups]
        noise, level = {}, self.strategy.client_level
        if level is not None and level.budget is not None:
            honest = level.honest(len(self.strategy.asked))
            noise = {"noise": {"sigma": level.mechanism.sigma, "honest": honest}}
        return {
            **noise,
            "groups": groups,
            "layouts": {name: layout.to_json() for name, layout in self._layouts().items()},
            "mixes_rows": self.strategy.mixes_rows,
            "seal_at_once": self.at_once,
            "population": len(self.strategy.roster.clients),
        }

    def open(self, grid: Grid, keys: Mapping[int, Mapping[str, Any]]) -> None:
        """Take up the cipher that the nodes' key belongs to.

        Args:
            grid: to reach them.
            keys: what each node said of its key: ``id``, and ``context`` for a throw-away one.

        Raises:
            FedpersError: nodes with several keys, or not the key of our context.
            ConfigError: parameters without room for so many clients.
        """
        from fedpers.channels.sealed import load_server, server_from

        self.grid = grid
        if self.config.encryption.keys is not None:
            self.cipher = load_server(Path(self.config.encryption.keys) / SERVER_FILE)
        else:
            context = next((str(k["context"]) for k in keys.values() if k.get("context")), None)
            if context is None:
                cure = "make keys: fedpers keys new --out DIR"
                raise ConfigError("encryption.keys", None, f"a folder with {SERVER_FILE}", cure)
            self.cipher = server_from(base64.b64decode(context, validate=True))
        if self.config.encryption.rotate_at is not None:
            self.next = self._rotation(Path(self.config.encryption.keys or ""))
        for node, key in keys.items():
            for name, cipher in (("id", self.cipher), ("next", self.next)):
                if cipher is not None and key.get(name) != cipher.key_id:
                    raise FedpersError(
                        f"node {node} has key {key.get(name)}, takes {cipher.key_id}; "
                        "give all nodes the same client.key, and next.key where keys rotate"
                    )
        self.cipher.parameters.check(max(1, len(self.strategy.roster.clients)))
        self.strategy.roster.key_id = self.cipher.key_id
        parameters = self.cipher.parameters
        log.info(
            "encryption: %s, key %s, %d bits of security",
            parameters.scheme,
            self.cipher.key_id,
            parameters.security,
        )

    def _rotation(self, folder: Path) -> ServerCipher:
        from fedpers.channels.sealed import load_server

        turn = self.config.encryption.rotate_at
        if self.config.encryption.keys is None:
            takes, cure = "null with a key that is made for the run", "or give encryption.keys"
            raise ConfigError("encryption.rotate_at", turn, takes, cure)
        if self.strategy.mixes_rows:
            takes = "null for a method that mixes rows of several rounds' updates"
            raise ConfigError("encryption.rotate_at", turn, takes)
        cipher = load_server(folder / NEXT_FILE)
        cipher.parameters.check(max(1, len(self.strategy.roster.clients)))
        return cipher

    def turn(self, server_round: int) -> None:
        """Before a round: take up the next key if it is time."""
        turn = self.config.encryption.rotate_at
        if self.next is not None and turn is not None and server_round >= turn:
            self.cipher, self.next = self.next, None
            log.info("encryption: key %s from round %d on", self.cipher.key_id, server_round)

    def refused(self, update: Row) -> str | None:
        """Why an update cannot be mixed with others; None if, as far as one can see, it can."""
        assert self.cipher is not None
        if not isinstance(update, SealedParts):
            return "update: got plain parts, takes sealed ones"
        try:
            found = update.sealed
            if list(update.groups) != self.groups or update.layouts != self._layouts():
                return f"update: got other parts than {[list(g.names) for g in self.groups]}"
            if update.divisor != 1:
                return f"update: got divisor {update.divisor:g}, takes 1"
            for group, one in zip(update.groups, found, strict=True):
                size = sum(self.strategy.sealed_layout(name).size for name in group.names)
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

    def _layouts(self) -> dict[str, Layout]:
        return {n: self.strategy.sealed_layout(n) for group in self.groups for n in group.names}

    def check_noise(self, level: ClientLevel, cohort: int) -> None:
        """Refuse shares of the noise that would be clipped: what is clipped is no longer Gaussian.

        Args:
            cohort: how many clients share it.

        Raises:
            ConfigError: a range below four standard deviations of a share.
        """
        norm = self.config.privacy.max_grad_norm
        least = 4 * level.mechanism.sigma * norm / level.honest(cohort) ** 0.5
        if self.config.encryption.range < least:
            takes = f"{least:.3g} or more, so that clients' shares of the noise fit"
            raise ConfigError("encryption.range", self.config.encryption.range, takes)

    def check_key(self, rows: Mapping[str, Row]) -> None:
        """Refuse to go on with parts that were sealed under another key than the nodes have.

        Raises:
            ConfigError: naming that key.
        """
        assert self.cipher is not None
        ids = {
            one.key_id
            for row in rows.values()
            if isinstance(row, SealedParts)
            for one in row.sealed
        }
        own = {cipher.key_id for cipher in (self.cipher, self.next) if cipher is not None}
        if other := ids - own:
            self.forget()
            takes = f"{other.pop()}, under which the checkpoint is sealed"
            cure = "a key made for a run is thrown away when it ends: give one with encryption.keys"
            raise ConfigError("encryption.keys", self.cipher.key_id, takes, cure)

    def collect(self, server_round: int, reports: Mapping[str, Mapping[str, Any]]) -> Mixing:
        """Tell the clients their weights, and have them seal what they kept.

        The updates that came are then all that is in the strategy's ``answers.rows``, and who
        failed in ``answers.failures``.
        """
        strategy = self.strategy
        mixing = strategy.mixing(server_round, reports)
        if list(mixing.recipients) != [None]:
            cure = "set mixes_rows = True in the strategy"
            raise RunError(f"mixing: got rows for {mixing.recipients[:3]}, takes one; {cure}")
        scaled = (mixing.weights[0] / mixing.weights[0].max()).tolist()
        self._weights = {c: w for c, w in zip(reports, scaled, strict=True) if w > 0}
        asked, header = strategy.roster.by_node(self._weights), strategy.header()
        messages = []
        for node, hosted in asked.items():
            own = {client: self._weights[client] for client in hosted}
            body = {**header, "round": server_round, "clients": hosted, "weights": own}
            content = pack([], body)
            messages.append(Message(content, dst_node_id=node, message_type="train.seal"))
        came = collect(self.send(messages), asked)
        strategy.answers.rows.clear()
        strategy.answers.rows.update(came.rows)
        strategy.answers.failures.update(came.failures)
        strategy.answers.add(came)
        return mixing

    def combine(
        self, mixing: Mixing, updates: Mapping[str, Row]
    ) -> tuple[list[SealedParts], dict[str, str]]:
        """The mixtures, a row each, and why some updates had to be left out.

        A ciphertext that turns out to be malformed while it is added costs its client alone.
        """
        columns, failures = list(updates), dict[str, str]()
        good = {c: update for c, update in updates.items() if isinstance(update, SealedParts)}
        if self.at_once and not self.strategy.mixes_rows:
            # Clients without examples have nothing to add.
            weighs = dict(zip(columns, mixing.weights[0].tolist(), strict=True))
            known = self._known or dict.fromkeys(columns, 1.0)
            self._weights = {c: known[c] for c in columns if weighs[c] > 0 and known[c] > 0}
            good = {client: update for client, update in good.items() if client in self._weights}
        while good:
            try:
                if self.strategy.mixes_rows:
                    return self._mixed(mixing, columns, good), failures
                return [self.total(good)], failures
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
        blobs = []
        for index in (k for k, group in enumerate(first.groups) if not group.unit):
            added = self.cipher.add(update.sealed[index] for update in updates.values())
            blobs.append(added.to_bytes())
        divisor = sum(self._weights[client] for client in updates)
        groups = tuple(group for group in first.groups if not group.unit)
        layouts = {name: first.layouts[name] for group in groups for name in group.names}
        self._note_bytes(first)
        return SealedParts(layouts, groups, tuple(blobs), divisor)

    def _note_bytes(self, update: SealedParts) -> None:
        self.bytes_per_parameter = update.nbytes / sum(one.size for one in update.sealed)

    def rows(
        self, weights: torch.Tensor, updates: Sequence[SealedParts], names: Sequence[str]
    ) -> list[SealedParts]:
        """Mixtures of the groups ``names`` with weights [R, K], for methods that mix rows."""
        assert self.cipher is not None
        kept = [update.of(names) for update in updates]
        mixed: list[list[bytes]] = [[] for _ in weights]
        for index in range(len(kept[0].groups)):
            found = self.cipher.mix(weights, [update.sealed[index] for update in kept])
            for row, one in zip(mixed, found, strict=True):
                row.append(one.to_bytes())
        return [SealedParts(kept[0].layouts, kept[0].groups, tuple(row)) for row in mixed]

    def _mixed(
        self, mixing: Mixing, columns: list[str], good: Mapping[str, SealedParts]
    ) -> list[SealedParts]:
        weights = mixing.weights[:, [columns.index(client) for client in good]]
        weights = weights / weights.sum(dim=1, keepdim=True)
        first = next(iter(good.values()))
        self._note_bytes(first)
        names = [n for group in first.groups if not group.unit for n in group.names]
        return self.rows(weights, list(good.values()), names)

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

    def opened(self, sealed: SealedParts) -> Parts:
        """Have one node open a mean that the server needs in the clear; the next is asked if it
        fails.

        Raises:
            RunError: none could.
        """
        reason, header = "there is no node", {**self.strategy.header(), "clients": []}
        for node in self.strategy.roster.hosts:
            message = Message(pack([sealed], header), dst_node_id=node, message_type="query.open")
            try:
                (reply,) = self.send([message])
                ((row,), _) = read_reply(reply)
                parts = in_the_clear(row)
                if parts.layouts != sealed.layouts or parts.first_not_finite():
                    raise ClientError(f"node {node} opened other parts than were sent")
                return parts
            except (ClientError, ValueError) as error:
                reason = str(error)
        raise RunError(f"no node could open a mean: {reason}")

    def forget(self) -> None:
        """Have the nodes throw away a key that was made for this run."""
        if self.config.encryption.keys is None:
            header = {**self.strategy.header(), "clients": []}
            nodes = self.strategy.roster.hosts
            messages = [
                Message(pack([], header), dst_node_id=node, message_type="query.forget")
                for node in nodes
            ]
            collect(self.send(messages), {node: [str(node)] for node in nodes})

    def send(self, messages: list[Message]) -> Iterator[Message]:
        assert self.grid is not None
        return send_and_receive(self.grid, messages, self.config.round_timeout)

    def figures(self) -> dict[str, Any]:
        """The report's figures on encryption."""
        assert self.cipher is not None
        return {
            "enabled": True,
            "scheme": self.cipher.parameters.scheme,
            "bytes_per_parameter": self.bytes_per_parameter,
            "security_bits": self.cipher.parameters.security,
            "key_id": self.cipher.key_id,
        }


FRESH = {False: ("vector",), True: ("head",)}


def plain(parts: Row) -> Parts:
    """Parts that are known to be in the clear."""
    assert isinstance(parts, Parts)
    return parts
