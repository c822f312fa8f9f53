"""The sealed channel at the nodes: the key, and what is sealed and opened with it."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedpers.channels.node import Kept, Leaving, NodeChannel
from fedpers.channels.sealed.cipher import ClientCipher, SealedVector
from fedpers.channels.sealed.keys import (
    CLIENT_FILE,
    NEXT_KEY,
    SERVER_FILE,
    load_client,
    new_keys,
)
from fedpers.channels.sealed.sealed_parts import Group, SealedParts, open_parts, seal_parts
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
        run_folder: names the run.
        population: how many clients there are.
        sources: of what is drawn to round a value.
        keys: the folder with the key; None for ``encryption.keys``.
        weights_of: what the method makes of cosines of a client's compared slot with the others'.
    """

    opens = ("open",)

    def __init__(
        self,
        config: Config,
        run_folder: str,
        population: int,
        sources: Sources,
        keys: Path | None = None,
        weights_of: Callable[[Sequence[float]], list[float]] | None = None,
    ) -> None:
        super().__init__()
        named = keys or (Path(config.encryption.keys) if config.encryption.keys else None)
        self.config, self.named, self.population = config, named, population
        self.sources, self.weights_of = sources, weights_of
        digest = hashlib.sha256(run_folder.encode()).hexdigest()[:16]
        home = Path(tempfile.gettempdir()) / f"fedpers-keys-{os.getuid()}"
        self.throw_away = home / digest
        self.kinds = {
            "seal": self._seal_kept,
            "open": self._open,
            "similarity": self._similarity,
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
        """The key's id, the next one's, and a context without the secret key where the pair was
        made here: which must allow for how the server mixes."""
        self._mixes_rows = bool(terms["mixes_rows"])
        said: dict[str, Any] = {"id": self.cipher.key_id}
        if self.next_cipher is not None:
            said["next"] = self.next_cipher.key_id
        if self.named is None:
            context = (self.throw_away / SERVER_FILE).read_bytes()
            said["context"] = base64.b64encode(context).decode()
        return said

    def arrive(self, row: Row) -> Parts:
        """Opened. What all clients of a node receive is opened once."""
        if isinstance(row, Parts):
            return row
        if not isinstance(row, SealedParts):
            raise ClientError("message: got parts of another channel, takes sealed ones")
        name = hashlib.sha256(row.to_bytes()).digest()
        if name not in self._opened:
            with self._timed("decrypt"):
                parts = open_parts(self._opening(row), row)
            if len(self._opened) >= KEPT:
                self._opened.pop(next(iter(self._opened)))
            self._opened[name] = parts
        return self._opened[name]

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
        return self.sealed(update, terms, weight=weight, client=client, server_round=server_round)

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
        update: Parts,
        terms: Mapping[str, Any],
        *,
        weight: float,
        client: str,
        server_round: int,
    ) -> SealedParts:
        """An update under encryption.

        Raises:
            ClientError: it is not finite.
        """
        # Rounding is drawn anew each time, unless somebody has to see the same bits twice.
        draws = self.sources if self.config.privacy.enabled else known(self.config.seed)
        with self._timed("encrypt"):
            return seal_parts(
                self._sealing(server_round),
                update,
                [Group.from_json(group) for group in terms["groups"]],
                range=self.config.encryption.range,
                weight=weight,
                source=draws("rounding", server_round, client),
            )

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
                sealed.append(self.sealed(update, body["channel"], weight=weight, **where))
            except Exception as error:  # it costs itself, not the node's others
                failures[client] = error
        return sealed, {"failures": failures, **self.take_seconds()}

    def _open(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Open means that the server needs in the clear, as the method's strategy says."""
        return [self.arrive(row) for row in rows], {}

    def _similarity(
        self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]
    ) -> tuple[list[Row], dict[str, Any]]:
        """For each client named, the weights of all clients by the similarity of their heads,
        rounded: products as they are would tell about the key, and more about heads than is
        needed."""
        (row,) = rows
        assert isinstance(row, SealedParts) and self.weights_of is not None
        others, weights = body["of"] - 1, {}
        products = self._cosines(row)
        for k, (client, place) in enumerate(zip(body["clients"], body["places"], strict=True)):
            cosines = products[k * others : (k + 1) * others]
            cosines.insert(place, 1.0)
            weights[client] = self.weights_of(cosines)
        return [], {"rows": weights}

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

    def _cosines(self, row: SealedParts) -> list[float]:
        """The inner products in a row, in -1..1; 0 for one that no unit vectors have."""
        with self._timed("decrypt"):
            try:
                return [float(x) for x in self.cipher.open_products(row.sealed)]
            except ClientError:
                return [self._cosine(one) for one in row.sealed]

    def _cosine(self, product: SealedVector) -> float:
        try:
            return float(self.cipher.open_products([product]))
        except ClientError:  # its sender's head is no unit vector, or it was changed on the way
            return 0.0

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

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started
