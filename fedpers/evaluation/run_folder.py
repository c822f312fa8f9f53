"""The folder of a run: settings, a line a round, a line a client, the report, TensorBoard."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fedpers.config import Config, load_config
from fedpers.errors import ConfigError
from fedpers.evaluation.results import ClientResult
from fedpers.evaluation.run_files import read_lines
from fedpers.files import lock, written
from fedpers.tasks.base import Tally

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

# When a run is resumed.
MAY_CHANGE = ("rounds", "round_timeout", "simulation", "output", "permit", "federation")


def new_run_id(config: Config) -> str:
    """A folder name: UTC time, data, strategy, seed, and 16 random bits against collisions.

    >>> new_run_id(Config())  # doctest: +SKIP
    '20261121-031500-digits-ditto-s0-9f3c'
    """
    # Two runs of one seed must differ: the only randomness that is not seeded.
    suffix = secrets.token_hex(2)
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    data, strategy = _plain(config.data.called), _plain(config.strategy.name)
    return f"{time}-{data}-{strategy}-s{config.seed}-{suffix}"


class RunFolder:
    """Writes the files of one run. Each line is on disk when the call returns. No other process can
    open the folder until it is closed, or this process ends.

    Args:
        path: the run's own folder, ``runs/<run-id>``; made if it is not there.
        config: written to ``config.yaml``.
        resume: go on with the run in ``path``. A last line cut off by a crash is dropped. A
            round that is run again is logged again: of two lines of a round, or of a round
            and client, the later one holds.

    Raises:
        ConfigError: there is a run in ``path`` already, or none to resume, or somebody is at work
            on it, or it cannot be written.
    """

    def __init__(self, path: Path, config: Config, *, resume: bool = False) -> None:
        self.path = path
        settings = path / "config.yaml"
        if resume and not settings.exists():
            raise ConfigError(
                "resume", str(path), "the folder of a run to resume, with config.yaml"
            )
        key = "resume" if resume else "output"
        with ExitStack() as opened:  # closed again if anything goes wrong
            try:
                path.mkdir(parents=True, exist_ok=True)
                opened.enter_context(_lock(path))
                if resume:
                    _check_same(load_config(settings), config, path)
                    replace_file(settings, config.to_yaml())
                else:
                    with settings.open("x", encoding="utf-8") as file:
                        file.write(config.to_yaml())
                self._rounds = opened.enter_context(_open_lines(path / "rounds.jsonl"))
                self._clients = opened.enter_context(_open_lines(path / "clients.jsonl"))
            except BlockingIOError:
                takes, cure = "a folder that no other run is at work on", "wait for its end"
                raise ConfigError(key, str(path), takes, cure) from None
            except FileExistsError:
                takes, cure = "a folder without a run", "resume that run or name another folder"
                raise ConfigError(key, str(path), takes, cure) from None
            except OSError as error:
                takes = f"a folder that can be written ({error.strerror or error})"
                raise ConfigError(key, str(path), takes) from None
            self._files = opened.pop_all()
        self._tensorboard: SummaryWriter | None = None
        self._has_tensorboard = True

    def log_round(self, line: Mapping[str, Any]) -> None:
        """Append ``line``, with at least its ``round``, to ``rounds.jsonl``.

        Its numbers go to TensorBoard too, nested ones as "outer/inner".

        Raises:
            RunError: the disk is full, or refuses; so ``log_clients`` and ``write_report``.
        """
        step = line["round"]
        with written(self.path / "rounds.jsonl"):
            _write_lines(self._rounds, [line])
        writer = self._writer()
        if writer is not None:
            for tag, value in _scalars(line):
                if tag != "round":
                    writer.add_scalar(tag, value, step)

    def log_clients(
        self, round: int, results: Sequence[ClientResult], failures: Mapping[str, str]
    ) -> None:
        """Append an evaluation to ``clients.jsonl``: a line a result, a line a failed client.

        ``failures`` is the error by client.
        """
        lines = [{"round": round, **result.to_json()} for result in results]
        lines += [{"round": round, "client": c, "error": why} for c, why in failures.items()]
        with written(self.path / "clients.jsonl"):
            _write_lines(self._clients, lines)

    def read(
        self, last: int, tally: type[Tally]
    ) -> tuple[list[dict[str, Any]], dict[int, list[ClientResult]]]:
        """The lines of the rounds up to ``last``, and the evaluations by round.

        Of two lines of a round, or of a round and client, the later one counts. One that cannot be
        read is named in the log and left out.

        Args:
            tally: of the run's task.
        """
        rounds = {line["round"]: line for line in self._lines("rounds.jsonl") if _summable(line)}
        results: dict[int, dict[str, ClientResult]] = {}
        for line in self._lines("clients.jsonl"):
            if "error" in line or type(line.get("round")) is not int or line["round"] > last:
                continue
            try:
                result = ClientResult.from_json(line, tally)
            except ValueError as error:
                told = "clients.jsonl: a line of round %d is left out: %s"
                log.warning(told, line["round"], error)
                continue
            results.setdefault(line["round"], {})[result.client] = result
        if missing := [number for number in range(1, last + 1) if number not in rounds]:
            log.warning("rounds.jsonl: the report goes without rounds %s, not there whole", missing)
        lines = [rounds[number] for number in sorted(rounds) if number <= last]
        return lines, {number: list(found.values()) for number, found in results.items()}

    def _lines(self, name: str) -> list[dict[str, Any]]:
        warn = partial(log.warning, "%s: line %d cannot be read, and is left out", name)
        return read_lines(self.path / name, warn)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Write ``report.json``, whole or not at all; NaN and infinities become null."""
        path = self.path / "report.json"
        with written(path):
            replace_file(path, json.dumps(_finite(report), indent=2, allow_nan=False))

    def close(self) -> None:
        """Close the files; may be called twice."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        with suppress(OSError):  # what a full disk did not take has been an error before
            self._files.close()

    def _writer(self) -> SummaryWriter | None:
        if self._tensorboard is None and self._has_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._has_tensorboard = False
                log.info("no TensorBoard files: the package tensorboard is not installed")
            else:
                folder = str(self.path / "tensorboard")
                self._tensorboard = SummaryWriter(folder, flush_secs=10)
        return self._tensorboard


def _lock(path: Path) -> AbstractContextManager[Any]:
    try:
        return lock(path / ".lock")
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        log.warning("%s: its file system has no locks, keep other runs away from it", path)
        return nullcontext()


def _check_same(before: Config, now: Config, path: Path) -> None:
    """Refuse settings under which a run would not go on as it began."""
    was, given = (_flat(json.loads(config.to_json())) for config in (before, now))
    for key in sorted(set(was) | set(given)):
        if key.split(".")[0] not in MAY_CHANGE and was.get(key) != given.get(key):
            takes = f"{was.get(key)!r}, with which the run in {path} began"
            cure = f"give {path / 'config.yaml'}, or start a new run"
            raise ConfigError(key, given.get(key), takes, cure)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {k: v for n, x in value.items() for k, v in _flat(x, f"{key}.{n}".strip(".")).items()}


def _summable(line: Mapping[str, Any]) -> bool:
    """Whether a round's line has what a report adds up."""
    counts = [line.get(name) for name in ("round", "answered", "uplink_bytes", "downlink_bytes")]
    times = [line.get(name) for name in ("seconds", "encryption_seconds")]
    return all(type(count) is int for count in counts) and all(
        isinstance(stages, Mapping) and all(isinstance(s, int | float) for s in stages.values())
        for stages in times
    )


def _plain(name: str) -> str:
    """The last piece of a name, path or ``package.module:Class``, fit for a folder's name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", re.split(r"[/\\:]", name)[-1]).strip("-") or "x"


def _open_lines(path: Path) -> TextIO:
    if path.exists():
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8", buffering=1)  # flushed at each line


def _write_lines(file: TextIO, lines: Sequence[Mapping[str, Any]]) -> None:
    file.writelines(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines)
    file.flush()
    os.fsync(file.fileno())


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # which a full disk does not name
        raise


def _finite(value: Any) -> Any:
    """``value`` with None for each NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
