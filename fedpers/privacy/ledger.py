"""The privacy ledger: what has been released of a client's data, over rounds, restarts and runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fedpers.errors import ClientError
from fedpers.files import flush
from fedpers.privacy.accounting import (
    epsilon_of,
    most_steps,
    mu_of,
    noise_multiplier,
    rounded_up,
)
from fedpers.privacy.sampled import Release

LEFT = 0.01  # of epsilon, the least that another run can be planned for


class BudgetSpent(ClientError):
    """The next release would cost more than is left: it is not made."""


class Ledger:
    """Every release of one data set, in a file that is written before the release is made.

    A crash can therefore only over-count. The file is replaced atomically and flushed to disk, and
    read again under a lock at each charge: a client's rounds may run in several processes by turns,
    clients may hold the same data, and two runs may use one folder at a time.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Open the ledger.

        Raises:
            ClientError: the file cannot be read: without it, what was spent is not known.
        """
        self.path = path
        self._steps = self._read()

    @property
    def releases(self) -> list[Release]:
        """What was released up to the last charge here, equal entries collapsed."""
        return _collapsed(self._steps)

    def epsilon(self, delta: float) -> float:
        """What was spent so far, at ``delta``."""
        return epsilon_of(self.releases, delta)

    def charge(
        self,
        releases: Sequence[Release],
        check: Callable[[list[Release]], None] | None = None,
    ) -> None:
        """Note releases that are about to be made. Returns when the note is on disk.

        Args:
            check: called with everything released, these included; it raises to charge nothing.

        Raises:
            ClientError: the file cannot be read any more.
        """
        with self._locked():
            self._steps = self._read()
            steps = dict(self._steps)
            for release in releases:
                key = (float(release.sigma), float(release.rate))
                steps[key] = steps.get(key, 0) + release.steps
            if check is not None:
                check(_collapsed(steps))
            self._write(steps)
            self._steps = steps

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file, among all processes of this machine; a killed one lets go."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(
            self.path.with_name(f".{self.path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[tuple[float, float], int]:
        found: dict[tuple[float, float], int] = {}
        try:
            if not self.path.exists():
                return found
            for sigma, rate, steps in json.loads(self.path.read_text(encoding="utf-8"))["releases"]:
                # Written so that NaN is refused, too.
                if not (sigma > 0 and 0 < rate <= 1 and type(steps) is int and steps >= 0):
                    raise ValueError(f"impossible entry {[sigma, rate, steps]}")
                key = (float(sigma), float(rate))
                found[key] = found.get(key, 0) + steps
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClientError(
                f"ledger: {self.path} cannot be read ({error}); restore it from a backup: "
                "what it held was released and cannot be forgotten"
            ) from error
        return found

    def _write(self, steps: dict[tuple[float, float], int]) -> None:
        rows = [[sigma, rate, count] for (sigma, rate), count in steps.items()]
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"releases": rows}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            flush(self.path.parent)
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

    @property
    def mu(self) -> float:
        """The mu of Gaussian DP of what was released."""
        return mu_of(self.ledger.releases, self.delta)

    def noise_multiplier(self, rate: float, steps: int, beside: tuple[Release, ...] = ()) -> float:
        """The smallest sigma at which what is left covers ``steps`` releases, and those ``beside``.

        Raises:
            BudgetSpent: less than a hundredth is left: that buys noise alone.
        """
        earlier = self.ledger.releases
        if epsilon_of(earlier, self.delta) > (1 - LEFT) * self.epsilon:
            raise BudgetSpent(self._spent_line())
        try:
            return noise_multiplier(self.epsilon, self.delta, rate, steps, (*beside, *earlier))
        except ValueError:
            raise BudgetSpent(self._spent_line()) from None

    def charge(self, releases: Sequence[Release]) -> None:
        """Charge what one round releases, before it is made.

        Args:
            releases: that of which there will be more in later rounds is the first.

        Raises:
            BudgetSpent: it would exceed the budget; nothing is charged.
        """
        kind = releases[0][:2]

        def check(everything: list[Release]) -> None:
            steps = sum(r.steps for r in everything if r[:2] == kind)
            beside = tuple(r for r in everything if r[:2] != kind)
            # How many fit is found once, and the same as long as nothing else is released.
            if steps > most_steps(self.epsilon, self.delta, *kind, beside):
                raise BudgetSpent(self._spent_line())

        self.ledger.charge(releases, check)

    def _spent_line(self) -> str:
        return (
            f"budget spent: {rounded_up(self.spent, 3)} of epsilon {self.epsilon:g} is used, "
            "and one more round would exceed it"
        )


def _collapsed(steps: dict[tuple[float, float], int]) -> list[Release]:
    return [Release(sigma, rate, count) for (sigma, rate), count in steps.items()]


def data_digest(tensors: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> str:
    """A name for a client's data set: the same examples, in any order or split, give the same.

    Args:
        tensors: pairs of inputs [n, ...] and targets [n, ...]: classes, or other tensors.
    """
    rows = []
    for x, y in tensors:
        for example, target in zip(x, y, strict=True):
            classes = target.ndim == 0 and not target.is_floating_point()
            own = int(target).to_bytes(8, "big") if classes else _bytes_of(target)
            rows.append(hashlib.sha256(_bytes_of(example) + own).digest())
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
