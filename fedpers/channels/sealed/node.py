"""The sealed channel at the nodes: the key, and what is sealed and opened with it."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedpers.channels.identity.home import Home, new_identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.node import ClientSide, Handler, Kept, Leaving, NodeChannel
from fedpers.channels.sealed.cipher import ClientCipher
from fedpers.channels.sealed.inspection import Inspection
from fedpers.channels.sealed.keys import (
    CLIENT_FILE,
    NEXT_KEY,
    SERVER_FILE,
    load_client,
    new_keys,
)
from fedpers.channels.sealed.opener import Opener
from fedpers.channels.sealed.sealed_parts import (
    Group,
    SealedParts,
    open_parts,
    seal_parts,
    sign_parts,
)
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Layout, Parts
from fedpers.privacy.noise import Sources, known
from fedpers.records import Row

KEPT = 64  # opened rows in memory


class SealedNode(NodeChannel):
    """A node's cipher. All nodes of a run have the same secret key.

    Without ``encryption.keys`` the first node of a simulation makes a key for this run. It lies in
    a folder for temporary files that only this user can read, apart from the run's, and is removed
    when the run ends.

    Args:
        config: the run's settings.
        stores: the folder of the clients' stores, in that of the run.
        population: how many clients there are.
        sources: of what is drawn to round a value.
        keys: the folder of a device's owner, with the key and its identity; None for
            ``encryption.keys``, and identities that are made for the run.
        method: the client side of the method.
        least: clients in a sum, at the least, as a device's owner has it.
    """

    opens = ("open",)

    def __init__(
        self,
        config: Config,
        stores: str,
        population: int,
        sources: Sources,
        keys: Path | None = None,
        method: ClientSide | None = None,
        least: int = 1,
    ) -> None:
        super().__init__()
        named = keys or (Path(config.encryption.keys) if config.encryption.keys else None)
        self.config, self.named, self.population = config, named, population
        self.sources, self.least = sources, least
        self.run, self.identities = Path(stores).parent.name, Home(new_identity, keys)
        known = self.run, self.identities, self._opening, self._inspection, method
        self.opener = opener = Opener(*known)
        digest = hashlib.sha256(stores.encode()).hexdigest()[:16]
        home = Path(tempfile.gettempdir()) / f"fedpers-keys-{os.getuid()}"
        self.throw_away = home / digest
        self.kinds = {
            "seal": self._seal_kept,
            "check": self._timing(opener.check),
            "agree": opener.agree,
            "open": self._timing(opener.open),
            "similarity": self._timing(opener.similarity),
            "forget": self._forget,
        }
        self._opened: dict[bytes, Parts] = {}
        self._mixes_rows = False

    @cached_property
    def cipher(self) -> ClientCipher:
        """The cipher with the secret key.

        Raises:
            ConfigError: a key file that cannot be used, or one for another purpose.
        """
        cipher = load_client((self.named or self._made()) / CLIENT_FILE)
        if self._mixes_rows and cipher.parameters.scheme != "ckks-rows":
            takes, cure = "ckks-rows for this method", "fedpers keys new --rows"
            raise ConfigError("encryption.keys", cipher.parameters.scheme, takes, cure)
        return cipher

    @cached_property
    def next_cipher(self) -> ClientCipher | None:
        """The cipher from ``encryption.rotate_at`` on; None where the key stays.

        Raises:
            ConfigError: a key file that cannot be used.
        """
        if self.config.encryption.rotate_at is None or self.named is None:
            return None
        return load_client(self.named / NEXT_KEY)

    def _sealing(self, server_round: int) -> ClientCipher:
        turn = self.config.encryption.rotate_at
        later = self.next_cipher if turn is not None and server_round >= turn else None
        return later or self.cipher

    def _opening(self, row: SealedParts) -> ClientCipher:
        later = self.next_cipher
        if later is not None and all(one.key_id == later.key_id for one in row.sealed):
            return later
        return self.cipher  # which refuses what it cannot open

    def introduction(
        self, kept: Kept, clients: Sequence[str], terms: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The key's id, the next one's, the clients' public identities, and a context without the
        secret key where the pair was made here: which must allow for how the server mixes."""
        self._mixes_rows = bool(terms["mixes_rows"])
        publics = Registry([self.identities.identity(kept, client).public for client in clients])
        said: dict[str, Any] = {"id": self.cipher.key_id, "identities": publics.to_json()}
        if self.next_cipher is not None:
            said["next"] = self.next_cipher.key_id
        if self.named is None:
            context = (self.throw_away / SERVER_FILE).read_bytes()
            said["context"] = base64.b64encode(context).decode()
        return said

    def arrive(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> list[Parts]:
        """Opened, if it is what clients of the run have signed. What all clients of a node receive
        is opened once."""
        found, receivers = [], dict[int, list[str]]()
        for client, k in body.get("rows", {}).items():
            receivers.setdefault(k, []).append(client)
        for k, row in enumerate(rows):
            if isinstance(row, SealedParts):
                inspection, rounds = self._inspection(kept, body), range(int(body["round"]) + 1)
                with self._timed("decrypt"):
                    found.append(self._arrived(inspection, row, rounds, receivers.get(k, ())))
            elif isinstance(row, Parts):
                found.append(row)
            else:
                raise ClientError("message: got parts of another channel, takes sealed ones")
        return found

    def _arrived(
        self,
        inspection: Inspection,
        row: SealedParts,
        rounds: Collection[int],
        receivers: Collection[str],
    ) -> Parts:
        name = hashlib.sha256(row.to_bytes() + repr(sorted(receivers)).encode()).digest()
        if name not in self._opened:
            cipher = self._opening(row)
            inspection.check(cipher, row, rounds, receivers)
            parts = open_parts(cipher, row)
            if len(self._opened) >= KEPT:
                self._opened.pop(next(iter(self._opened)))
            self._opened[name] = parts
        return self._opened[name]

    def _inspection(self, kept: Kept, body: Mapping[str, Any]) -> Inspection:
        """What has to be made sure of before something is opened."""
        offered, (client, *_) = body["channel"].get("registry"), body["clients"]
        registry = self.identities.registry(kept, client, offered)
        return Inspection(self.run, registry, self.config.encryption.range, self.least)

    def derives(self, terms: Mapping[str, Any], sent: Sequence[str]) -> list[str]:
        """What is sealed beside what was sent."""
        return [name for names, _ in terms["groups"] for name in names if name not in sent]

    def leave(self, kept: Kept, leaving: Leaving) -> Row | None:
        """Sealed, multiplied by its weight; or kept, where that is not known yet."""
        client, server_round, update, _, body, _ = leaving
        terms = body["channel"]
        if not terms["seal_at_once"]:
            kept.hold(client, server_round, update)
            return None
        weight = float(body.get("weights", {}).get(client, 1.0))
        where: dict[str, Any] = {"client": client, "server_round": server_round}
        return self.sealed(kept, update, terms, weight=weight, **where)

    def as_declared(
        self, row: Row, declared: Mapping[str, Layout], terms: Mapping[str, Any]
    ) -> Row:
        """Sealed, of which the names and shapes can be read: those that the server knows."""
        groups = tuple(Group.from_json(group) for group in terms["groups"])
        layouts = {str(n): Layout.from_json(x) for n, x in terms["layouts"].items()}
        ordered = {name: layouts[name] for group in groups for name in group.names}
        if not isinstance(row, SealedParts) or row.groups != groups or row.layouts != ordered:
            raise ClientError("upload: sealed otherwise than the server asked for")
        return replace(row, layouts=ordered, divisor=1.0, broken="")

    def sealed(
        self,
        kept: Kept,
        update: Parts,
        terms: Mapping[str, Any],
        *,
        weight: float,
        client: str,
        server_round: int,
    ) -> SealedParts:
        """An update under encryption, with its client's word for it.

        Raises:
            ClientError: it is not finite.
        """
        cipher, identity = self._sealing(server_round), self.identities.identity(kept, client)
        groups = [Group.from_json(group) for group in terms["groups"]]
        # Rounding is drawn anew each time, unless somebody has to see the same bits twice.
        draws = self.sources if self.config.privacy.enabled else known(self.config.seed)
        source, most = draws("rounding", server_round, client), self.config.encryption.range
        with self._timed("encrypt"):
            row = seal_parts(cipher, update, groups, range=most, weight=weight, source=source)
            return sign_parts(cipher, identity, self.run, server_round, row, weight)

    # -- its own kinds of message --------------------------------------------------------------

    def _seal_kept(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Seal what the clients named kept, multiplied by their weights."""
        sealed: list[Row] = []
        failures: dict[str, Exception] = {}
        for client in body["clients"]:
            where: dict[str, Any] = {"client": client, "server_round": body["round"]}
            try:
                update, weight = kept.held(client, body["round"]), float(body["weights"][client])
                sealed.append(self.sealed(kept, update, body["channel"], weight=weight, **where))
            except Exception as error:  # it costs itself, not the node's others
                failures[client] = error
        return sealed, {"failures": failures, **self.take_seconds()}

    def _forget(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Remove a key that was made for the run."""
        if self.named is None:
            self.__dict__.pop("cipher", None)
            self._opened.clear()
            shutil.rmtree(self.throw_away, ignore_errors=True)
            Path(f"{self.throw_away}.lock").unlink(missing_ok=True)
        return [], {}

    def _made(self) -> Path:
        home = self.throw_away.parent
        home.mkdir(mode=0o700, exist_ok=True)
        found = home.lstat()  # a link to elsewhere is open to all, by its mode
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            takes = "a folder of yours that nobody else can read"
            raise ConfigError("TMPDIR", str(home), takes, f"remove {home}")
        with FileLock(f"{self.throw_away}.lock"):
            if not (self.throw_away / SERVER_FILE).exists():
                scheme = self.config.encryption.scheme
                new_keys(self.throw_away, scheme, max(1, self.population), rows=self._mixes_rows)
        return self.throw_away

    def _timing(self, answer: Handler) -> Handler:
        """An answer that counts as time to decrypt."""

        def timed(
            kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
        ) -> tuple[list[Row], dict[str, Any]]:
            with self._timed("decrypt"):
                answered, told = answer(kept, rows, body)
            return answered, {**told, **self.take_seconds()}

        return timed

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
