"""The privacy ledger: what has been released of a client's data, over rounds, restarts and runs."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedpers.errors import ClientError, ConfigError
from fedpers.files import alone_with, read_own, write_own
from fedpers.privacy.accounting import calibrated, epsilon_of, most_steps, mu_of, rounded_up
from fedpers.privacy.mechanisms import Mechanism, Release

RESTORE = "restore it from a backup: what it held was released and cannot be forgotten"
LEFT = 0.01  # of epsilon, the least that another run can be planned for


class BudgetSpent(ClientError):
    """The next release would cost more than is left: it is not made."""


class Ledger:
    """Every release of one data set, in a file that is written before the release is made.

    A crash can therefore only over-count. The file is replaced atomically and flushed to disk, and
    read again under a lock at each charge: a client's rounds may run in several processes by turns,
    clients may hold the same data, and two runs may use one folder at a time.

    Where it outlives runs, a receipt in another folder says which ledger it is and how often it was
    charged: one that is gone, another's, or from an older backup is refused. That the whole state
    folder is from an older backup, or was removed, cannot be seen.

    Args:
        path: the file; it need not exist yet.
        receipt: the receipt, if there is to be one.
    """

    def __init__(self, path: Path, receipt: Path | None = None) -> None:
        """Open the ledger.

        Raises:
            ClientError: the file cannot be read, is not what the receipt says, or holds releases
                of a mechanism that is not there: what was spent is not known then.
        """
        self.path, self.receipt = path, receipt
        self._steps = self._read().steps

    @classmethod
    def named(cls, ledgers: Path, name: str, *, lasts: bool = True) -> Ledger:
        """The ledger ``name`` of a folder; if it outlives runs, with a receipt in the folder
        ``accounts`` beside it."""
        receipt = ledgers.parent / "accounts" / f"{name}.json" if lasts else None
        return cls(ledgers / f"{name}.json", receipt)

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
            ClientError: the file cannot be read any more, or is not what the receipt says.
        """
        with alone_with(self.path):
            kept = self._read()
            self._steps, steps = kept.steps, dict(kept.steps)
            for release in releases:
                steps[release.mechanism] = steps.get(release.mechanism, 0) + release.steps
            if check is not None:
                check(_collapsed(steps))
            self._write(Kept(steps, kept.ledger or secrets.token_hex(16), kept.charges + 1))
            self._steps = steps

    def _read(self) -> Kept:
        # The receipt first: another process may be at work, which writes it last.
        receipt = None if self.receipt is None else self._parsed(self.receipt, _receipt_of)
        kept = self._parsed(self.path, _kept_of)
        if receipt is not None:
            if kept is None:
                raise self._refusal("is gone")
            if kept.ledger != receipt.ledger:
                raise self._refusal("is not the ledger that was kept here")
            if kept.charges < receipt.charges:
                times = f"{kept.charges} of {receipt.charges} charges"
                raise self._refusal(f"is older than what was released ({times})")
        return kept or Kept({})

    def _parsed(self, path: Path, parse: Callable[[Any], Kept]) -> Kept | None:
        try:
            text = read_own(path)
            return None if text is None else parse(json.loads(text))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise self._refusal(f"cannot be read ({reason})", path) from error
        except ConfigError as error:
            why = f"holds releases of a mechanism that is not there ({error})"
            cure = "install the package that brings it: what they cost counts"
            raise self._refusal(why, path, cure) from error

    def _refusal(self, why: str, path: Path | None = None, cure: str = RESTORE) -> ClientError:
        return ClientError(f"ledger: {path or self.path} {why}; {cure}")

    def _write(self, kept: Kept) -> None:
        rows = [release.to_json() for release in _collapsed(kept.steps)]
        told = {"ledger": kept.ledger, "charges": kept.charges}
        write_own(self.path, json.dumps({**told, "releases": rows}))
        if self.receipt is not None:
            write_own(self.receipt, json.dumps(told))


class Kept(NamedTuple):
    """What a ledger's file holds, and without the steps its receipt.

    Attributes:
        steps: of each mechanism.
        ledger: a random name; empty until the first charge, and in files of earlier versions.
        charges: how often it was charged.
    """

    steps: dict[Mechanism, int]
    ledger: str = ""
    charges: int = 0


def _receipt_of(found: Any) -> Kept:
    if type(found["charges"]) is not int or type(found["ledger"]) is not str:
        raise ValueError("no receipt")
    return Kept({}, found["ledger"], found["charges"])


def _kept_of(found: Any) -> Kept:
    steps: dict[Mechanism, int] = {}
    for mechanism, count in map(Release.from_json, found["releases"]):
        steps[mechanism] = steps.get(mechanism, 0) + count
    return _receipt_of({"ledger": "", "charges": 0, **found})._replace(steps=steps)


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

    def calibrated(
        self, kind: type[Mechanism], rate: float, steps: int, beside: tuple[Release, ...] = ()
    ) -> Mechanism:
        """The mechanism with the least noise at which what is left covers so many steps of it, and
        the releases ``beside``.

        Raises:
            BudgetSpent: less than a hundredth is left: that buys noise alone.
        """
        earlier = self.ledger.releases
        if epsilon_of(earlier, self.delta) > (1 - LEFT) * self.epsilon:
            raise BudgetSpent(self._spent_line())
        try:
            return calibrated(kind, self.epsilon, self.delta, rate, steps, (*beside, *earlier))
        except ValueError:
            raise BudgetSpent(self._spent_line()) from None

    def charge(self, releases: Sequence[Release], *, one_kind: bool = True) -> None:
        """Charge what one round releases, before it is made.

        Args:
            releases: that of which there will be more in later rounds is the first.
            one_kind: whether there will be more of that alone.

        Raises:
            BudgetSpent: it would exceed the budget; nothing is charged.
        """
        growing = releases[0].mechanism

        def check(everything: list[Release]) -> None:
            if not one_kind:
                if self.epsilon < epsilon_of(everything, self.delta):
                    raise BudgetSpent(self._spent_line())
                return
            steps = sum(r.steps for r in everything if r.mechanism == growing)
            beside = tuple(r for r in everything if r.mechanism != growing)
            # How many fit is found once, and the same as long as nothing else is released.
            if steps > most_steps(self.epsilon, self.delta, growing, beside):
                raise BudgetSpent(self._spent_line())

        self.ledger.charge(releases, check)

    def _spent_line(self) -> str:
        return (
            f"budget spent: {rounded_up(self.spent, 3)} of epsilon {self.epsilon:g} is used, "
            "and one more round would exceed it"
        )


def _collapsed(steps: dict[Mechanism, int]) -> list[Release]:
    return [Release(mechanism, count) for mechanism, count in steps.items()]


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
