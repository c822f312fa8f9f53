"""What the server knows after a round, in one file, so that a run can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from fedpers.channels.base import State
from fedpers.channels.kinds import KINDS
from fedpers.channels.opaque import Opaque
from fedpers.errors import ClientError, ConfigError, line_of
from fedpers.files import flush, written
from fedpers.parts import Part, Parts
from fedpers.records import Row

log = logging.getLogger("fedpers")

# What reading a file that is not as it was saved may raise.
DAMAGED = (
    *(OSError, SafetensorError, ClientError, RecursionError),
    *(ValueError, KeyError, TypeError, AttributeError, AssertionError),
)
KEPT = 2  # checkpoints; the one before the last stands in for a damaged one
VALUES = "values"
STATE, DIGESTS = "state.json", "digests.json"


def members(groups: Mapping[str, Row], kind: str) -> dict[str, Row]:
    """Of groups called "kind client", each client's."""
    start = f"{kind} "
    return {n.removeprefix(start): parts for n, parts in groups.items() if n.startswith(start)}


def save_checkpoint(folder: Path, server_round: int, state: State) -> None:
    """Write the state after a round, whole or not at all, and forget all but the one before it.

    Raises:
        RunError: the disk is full, or refuses.
    """
    with written(folder):
        _save(folder, server_round, state)


def _save(folder: Path, server_round: int, state: State) -> None:
    folder.mkdir(exist_ok=True)
    groups, values = state
    in_the_clear = {name: row for name, row in groups.items() if isinstance(row, Parts)}
    opaque = {name: row for name, row in groups.items() if isinstance(row, Opaque)}
    flat = {
        f"{len(name)}:{name}{part}": p
        for name, parts in in_the_clear.items()
        for part, p in parts.items()
    }
    path = folder / f"round-{server_round:06d}"
    temporary = folder / f".{path.name}.tmp"
    if temporary.exists():  # of a process that was killed
        _remove(temporary)
    temporary.mkdir()
    Parts(flat).save(temporary / "parts.safetensors")
    for k, row in enumerate(opaque.values()):
        (temporary / f"{k}.opaque").write_bytes(row.to_bytes())
    kinds = {name: row.stype for name, row in opaque.items()}
    names = {"groups": list(in_the_clear), "opaque": kinds}
    text = json.dumps({**names, VALUES: values})
    (temporary / STATE).write_text(text, encoding="utf-8")
    digests = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
    (temporary / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    for file in temporary.iterdir():
        flush(file)
    flush(temporary)
    if path.exists():  # the round was run again
        _remove(path)
    os.replace(temporary, path)
    flush(folder)
    for old in sorted(folder.glob("round-*"))[:-KEPT]:
        _remove(old)


def load_checkpoint(folder: Path, load: Callable[[State], None]) -> int:
    """Have ``load`` take up the state of the last intact checkpoint; the round it was made after.

    One that is damaged, or lacks what ``load`` looks for, is named in the log.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(folder.glob("round-*"), reverse=True)
    for path in found:
        try:
            load(_read(path))
            return int(path.name.removeprefix("round-"))
        except DAMAGED as error:
            reason = line_of(f"{type(error).__name__}: {error}")
            log.warning("%s is damaged (%s): an earlier one is taken", path, reason)
    takes = "a run with an intact checkpoint" if found else "a run that has completed a round"
    raise ConfigError("resume", str(folder.parent), takes, "start it anew")


def _read(path: Path) -> State:
    if (path / DIGESTS).exists():  # earlier versions wrote none
        for name, digest in json.loads((path / DIGESTS).read_text(encoding="utf-8")).items():
            if _digest(path / name) != digest:
                raise ValueError(f"{name} was changed since it was written")
    kept = json.loads((path / STATE).read_text(encoding="utf-8"))
    flat = Parts.load(path / "parts.safetensors")
    groups: dict[str, dict[str, Part]] = {name: {} for name in kept["groups"]}
    for label, part in flat.items():
        length, _, rest = label.partition(":")
        groups[rest[: int(length)]][rest[int(length) :]] = part
    state: dict[str, Row] = {name: Parts(parts) for name, parts in groups.items()}
    for k, (name, kind) in enumerate(kept["opaque"].items()):
        state[name] = KINDS[kind].from_bytes((path / f"{k}.opaque").read_bytes())
    return state, kept[VALUES]


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
