"""The privacy ledger: what has been released of a client's data, over rounds, restarts and runs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from fedpers.errors import ClientError
from fedpers.privacy.accounting import Release, epsilon_of


class BudgetSpent(ClientError):
    """The next release would cost more than is left: it is not made."""


class Ledger:
    """Every release of one data set, in a file that is written before the release is made.

    A crash can therefore only over-count. The file is replaced atomically and flushed to disk.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Open the ledger.

        Raises:
            ClientError: the file cannot be read: without it, what was spent is not known.
        """
        self.path = path
        self._steps: dict[tuple[float, float], int] = {}
        if path.exists():
            try:
                for sigma, rate, steps in json.loads(path.read_text(encoding="utf-8"))["releases"]:
                    self._steps[float(sigma), float(rate)] = int(steps)
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ClientError(
                    f"ledger: {path} cannot be read ({error}); restore it from a backup: "
                    "what it held was released and cannot be forgotten"
                ) from error

    @property
    def releases(self) -> list[Release]:
        """What was released, equal entries collapsed."""
        return [Release(sigma, rate, steps) for (sigma, rate), steps in self._steps.items()]

    def epsilon(self, delta: float) -> float:
        """What was spent so far, at ``delta``."""
        return epsilon_of(self.releases, delta)

    def charge(self, releases: Sequence[Release]) -> None:
        """Note releases that are about to be made. Returns when the note is on disk."""
        steps = dict(self._steps)
        for release in releases:
            key = (float(release.sigma), float(release.rate))
            steps[key] = steps.get(key, 0) + release.steps
        self._write(steps)
        self._steps = steps

    def _write(self, steps: dict[tuple[float, float], int]) -> None:
        rows = [[sigma, rate, count] for (sigma, rate), count in steps.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"releases": rows}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


class Budget:
    """A ledger with a limit.

    Args:
        ledger: what was released.
        epsilon: what may be spent in all.
        delta: at which it is counted.
    """

    def __init__(self, ledger: Ledger, epsilon: float, delta: float) -> None:
        self.ledger, self.epsilon, self.delta = ledger, epsilon, delta

    @property
    def spent(self) -> float:
        """The epsilon of what was released."""
        return self.ledger.epsilon(self.delta)

    def charge(self, releases: Sequence[Release]) -> None:
        """Charge what one round releases, before it is made.

        Raises:
            BudgetSpent: it would exceed the budget; nothing is charged.
        """
        if epsilon_of([*self.ledger.releases, *releases], self.delta) > self.epsilon:
            raise BudgetSpent(
                f"budget spent: {self.spent:.3f} of epsilon {self.epsilon:g} is used, "
                "and one more round would exceed it"
            )
        self.ledger.charge(releases)


def data_digest(tensors: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> str:
    """A name for a client's data set: the same examples, in any order or split, give the same.

    Args:
        tensors: pairs of inputs [n, ...] and labels [n].
    """
    rows = []
    for x, y in tensors:
        for example, label in zip(x, y, strict=True):
            content = example.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            rows.append(hashlib.sha256(content + int(label).to_bytes(8, "big")).digest())
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()
