"""What a client keeps on its own disk between rounds, and never sends."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedpers.parts import Parts


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

    def load_json(self, name: str) -> dict[str, Any]:
        """The values saved as ``name``; empty if there are none yet."""
        path = self.folder / f"{name}.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def save_json(self, name: str, values: dict[str, Any]) -> None:
        """Save JSON-able values as ``name``."""
        text = json.dumps(values)
        self._write(f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"))

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
                _flush(Path(temporary))
            os.replace(temporary, self.folder / name)
            if self.durable:
                _flush(self.folder)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
