"""The clients' side of encrypted aggregation: the key, and what is sealed and opened with it."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedpers.channels.sealed.keys import CLIENT_FILE, SERVER_FILE
from fedpers.channels.sealed.sealed_parts import Group, SealedParts, open_parts, seal_parts
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.privacy import mechanism_named
from fedpers.privacy.noise import Sources, known
from fedpers.records import Row

if TYPE_CHECKING:
    from fedpers.channels.sealed import ClientCipher, Sealed

NEXT_FILE = "next.key"


class Sealer:
    """A node's cipher. All nodes of a run have the same secret key.

    Without ``encryption.keys`` the first node of a simulation makes a key for this run. It lies in
    a folder for temporary files that only this user can read, apart from the run's, and is removed
    when the run ends.

    Args:
        config: the run's settings.
        run_folder: names the run.
        population: how many clients there are.
        sources: of the clients' shares of noise.
        keys: the folder with the key; None for ``encryption.keys``.
    """

    def __init__(
        self,
        config: Config,
        run_folder: str,
        population: int,
        sources: Sources,
        keys: Path | None = None,
    ) -> None:
        named = keys or (Path(config.encryption.keys) if config.encryption.keys else None)
        self.config, self.named, self.population = config, named, population
        self.sources = sources
        digest = hashlib.sha256(run_folder.encode()).hexdigest()[:16]
        home = Path(tempfile.gettempdir()) / f"fedpers-keys-{os.getuid()}"
        self.throw_away = home / digest
        self.seconds = {"encrypt": 0.0, "decrypt": 0.0}
        self._opened: dict[bytes, Parts] = {}
        self._mixes_rows = False

    def serve(self, sealing: Mapping[str, Any]) -> Sealer:
        """Take note of how the server mixes, which a key made here must allow."""
        self._mixes_rows = bool(sealing["mixes_rows"])
        return self

    @cached_property
    def cipher(self) -> ClientCipher:
        """The cipher with the secret key.

        Raises:
            ConfigError: a key file that cannot be used, or one for another purpose.
        """
        from fedpers.channels.sealed import load_client

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
        from fedpers.channels.sealed import load_client

        if self.config.encryption.rotate_at is None or self.named is None:
            return None
        return load_client(self.named / NEXT_FILE)

    def _sealing(self, server_round: int) -> ClientCipher:
        turn = self.config.encryption.rotate_at
        later = self.next_cipher if turn is not None and server_round >= turn else None
        return later or self.cipher

    def _opening(self, row: SealedParts) -> ClientCipher:
        later = self.next_cipher
        if later is not None and all(one.key_id == later.key_id for one in row.sealed):
            return later
        return self.cipher  # which refuses what it cannot open

    def key(self) -> dict[str, Any]:
        """What the server is told: the key's id, the next one's, and a context without the secret
        key where the pair was made here."""
        said: dict[str, Any] = {"id": self.cipher.key_id}
        if self.next_cipher is not None:
            said["next"] = self.next_cipher.key_id
        if self.named is None:
            context = (self.throw_away / SERVER_FILE).read_bytes()
            said["context"] = base64.b64encode(context).decode()
        return said

    def forget(self) -> None:
        """Remove a key that was made for the run."""
        if self.named is None:
            self.__dict__.pop("cipher", None)
            self._opened.clear()
            shutil.rmtree(self.throw_away, ignore_errors=True)
            Path(f"{self.throw_away}.lock").unlink(missing_ok=True)

    def opened(self, row: Row) -> Parts:
        """Parts in the clear. What all clients of a node receive is opened once.

        Raises:
            ClientError: it cannot be opened.
        """
        if isinstance(row, Parts):
            return row
        name = hashlib.sha256(row.to_bytes()).digest()
        if name not in self._opened:
            with self._timed("decrypt"):
                parts = open_parts(self._opening(row), row)
            if len(self._opened) >= KEPT:
                self._opened.pop(next(iter(self._opened)))
            self._opened[name] = parts
        return self._opened[name]

    def cosines(self, row: SealedParts) -> list[float]:
        """The inner products in a row, in -1..1; 0 for one that no unit vectors have."""
        with self._timed("decrypt"):
            try:
                return [float(x) for x in self.cipher.open_products(row.sealed)]
            except ClientError:
                return [self._cosine(one) for one in row.sealed]

    def _cosine(self, product: Sealed) -> float:
        try:
            return float(self.cipher.open_products([product]))
        except ClientError:  # its sender's head is no unit vector, or it was changed on the way
            return 0.0

    def sealed(
        self,
        upload: Parts,
        sealing: Mapping[str, Any],
        *,
        weight: float,
        client: str,
        server_round: int,
    ) -> SealedParts:
        """An upload under encryption.

        Raises:
            ClientError: it is not finite.
        """
        groups = [Group.from_json(group) for group in sealing["groups"]]
        if "noise" in sealing:
            upload = self._with_share(upload, sealing["noise"], client, server_round)
        # Rounding is drawn anew each time, unless somebody has to see the same bits twice.
        draws = self.sources if self.config.privacy.enabled else known(self.config.seed)
        with self._timed("encrypt"):
            return seal_parts(
                self._sealing(server_round),
                upload,
                groups,
                range=self.config.encryption.range,
                weight=weight,
                source=draws("rounding", server_round, client),
            )

    def _with_share(
        self, upload: Parts, noise: Mapping[str, Any], client: str, server_round: int
    ) -> Parts:
        """The upload with this client's share of the noise: those of as many clients as are taken
        to be honest add up to all of it."""
        privacy, shares = self.config.privacy, int(noise["honest"])
        mechanism = mechanism_named(privacy.mechanism)(float(noise["sigma"]), 1.0)
        source = self.sources("share", server_round, client)

        def with_share(vector: Tensor) -> Tensor:
            return mechanism.noised_share(vector.float(), privacy.max_grad_norm, source, shares)

        return Parts({n: p.like(with_share(p.vector)) for n, p in upload.items()})

    def _made(self) -> Path:
        from filelock import FileLock

        from fedpers.channels.sealed import new_keys

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

    def take_seconds(self) -> dict[str, float]:
        """Seconds spent since the last look."""
        taken = dict(self.seconds)
        self.seconds = dict.fromkeys(taken, 0.0)
        return taken


KEPT = 64  # opened rows in memory
