"""Files that are on the disk when a call returns, and files that one process holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from fedpers.errors import RunError


def flush(path: Path) -> None:
    """Return when a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(path: Path) -> IO[bytes]:
    """Hold the file ``path``, which is made if need be, until what is returned is closed or this
    process ends, however that comes.

    Raises:
        BlockingIOError: somebody holds it.
        OSError: it cannot be made, or its file system knows no locks.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Around the writing of a run's file: a disk that is full, or refuses, is one line.

    Raises:
        RunError: naming ``path`` and the reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        cure = "make room and resume the run"
        raise RunError(f"{path}: cannot be written ({reason}); {cure}") from None
