"""What a client keeps on its own disk between rounds, and never sends.

Parts that change from round to round are kept by round, the last two of them: a round that is run
again, as its server was restarted, starts where it started before, and a file that a crash or a
bad disk has damaged costs one round, not the client's model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError

from fedpers.files import flush
from fedpers.parts import Parts

log = logging.getLogger("fedpers")

ANSWER = "answer"

DAMAGED = (OSError, SafetensorError, ValueError, KeyError, TypeError)


class ClientStore:
    """One client's folder. Every write is atomic: a reader finds the old file or the new one.

    Args:
        root: the folder that holds all stores of this node.
        client: the client's id; any text.
        durable: flush to the disk before a write counts as done (devices), or leave that to the
            operating system (simulations).
    """

    def __init__(self, root: Path, client: str, *, durable: bool = False) -> None:
        # Quoting leaves dots as they are, and a client called ".." must stay in its own folder, as
        # must one without a name ("%" alone is no other name's quotation).
        self.folder = root / (quote(client, safe="").replace(".", "%2E") or "%")
        self.durable = durable

    def load(self, name: str) -> Parts:
        """The parts saved as ``name``; none if there are none yet."""
        path = self.folder / f"{name}.safetensors"
        return Parts.load(path) if path.exists() else Parts()

    def save(self, name: str, parts: Parts) -> None:
        """Save parts as ``name``, readable by this user only."""
        self._write(f"{name}.safetensors", lambda path: parts.save(path))

    def load_before(self, name: str, server_round: int) -> Parts:
        """The parts saved as ``name`` in the last round before ``server_round``; none if there are
        none. A damaged file is named in the log, put aside, and the one before it taken."""
        for found, path in self._rounds_of(name):
            if found < server_round:
                try:
                    return Parts.load(path)
                except DAMAGED as error:
                    log.warning("%s is damaged (%s): an earlier one is taken", path, error)
                    # Else it would stand for the round before, and that one be forgotten.
                    with suppress(OSError):
                        os.replace(path, path.with_suffix(".damaged"))
        return Parts()

    def load_round(self, name: str, server_round: int) -> Parts:
        """The parts saved as ``name`` in just this round; none if there are none."""
        return self.load(f"{name}-{server_round}")

    def save_round(self, name: str, server_round: int, parts: Parts) -> None:
        """Save parts as ``name`` of a round, and forget all but the last round before it."""
        self._write(f"{name}-{server_round}.safetensors", lambda path: parts.save(path))
        before = [path for found, path in self._rounds_of(name) if found < server_round]
        for path in before[1:]:
            path.unlink(missing_ok=True)

    def _rounds_of(self, name: str) -> list[tuple[int, Path]]:
        """The files of ``name`` by round, the last first."""
        found = []
        try:
            files = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        for file in files:
            tail = file.removeprefix(f"{name}-").removesuffix(".safetensors")
            if tail.isdecimal() and file == f"{name}-{tail}.safetensors":
                found.append((int(tail), self.folder / file))
        return sorted(found, reverse=True)

    def load_json(self, name: str) -> dict[str, Any]:
        """The values saved as ``name``; empty if there are none yet. A damaged file is named in the
        log, and as good as none: what it held is made anew."""
        path = self.folder / f"{name}.json"
        try:
            if not path.exists():
                return {}
            digest, _, text = path.read_text(encoding="utf-8").partition("\n")
            if digest != _digest(text):
                raise ValueError("its content is not what was saved (SHA-256 differs)")
            return dict(json.loads(text))
        except DAMAGED as error:
            log.warning("%s is damaged (%s): it is made anew", path, error)
            return {}

    def save_json(self, name: str, values: dict[str, Any]) -> None:
        """Save JSON-able values as ``name``, under a line with their SHA-256."""
        text = json.dumps(values)
        content = f"{_digest(text)}\n{text}"
        self._write(f"{name}.json", lambda path: path.write_text(content, encoding="utf-8"))

    def answer_to(self, asked: list[Any]) -> tuple[Parts, dict[str, Any]] | None:
        """What was answered to this before, upload and report; None if that is not known."""
        kept = self.load_json(ANSWER)
        if kept.get("to") != asked:
            return None
        try:
            upload = self.load(ANSWER)
        except DAMAGED:
            return None  # it trains again, and pays for it
        return (upload, dict(kept["report"])) if upload.digest() == kept["upload"] else None

    def keep_answer(self, asked: list[Any], upload: Parts, report: dict[str, Any]) -> None:
        """Keep what is about to be answered."""
        self.save(ANSWER, upload)
        self.save_json(ANSWER, {"to": asked, "upload": upload.digest(), "report": report})

    def forget(self) -> None:
        """Remove all that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, write: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        os.close(handle)  # mkstemp made it with mode 0600
        try:
            write(Path(temporary))
            os.chmod(temporary, 0o600)  # safetensors may have put a new file in its place
            if self.durable:
                flush(Path(temporary))
            os.replace(temporary, self.folder / name)
            if self.durable:
                flush(self.folder)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
