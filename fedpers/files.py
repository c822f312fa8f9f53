"""Files that are on the disk when a call returns, and files that one process holds."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from fedpers.errors import RunError, line_of


def flush(path: Path) -> None:
    """Return when a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_own(path: Path) -> str | None:
    """The text of a file that this program wrote; None where there is none.

    Raises:
        OSError: it cannot be read, or is a link or anything but a plain file: what is written
            replaces a link, and what it pointed to would stay behind.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no plain file")
    with os.fdopen(handle, encoding="utf-8") as file:
        return file.read()


def write_own(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a file, readable by this user only: there is the old one or the new one.

    Args:
        durable: whether the new one is on the disk when this returns; else it is what every process
            sees from then on, and the disk in a while.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in such a block for ``path``; a killed one
    lets go."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
    handle = os.open(path.with_name(f".{path.name}.lock"), flags, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
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
        reason = getattr(error, "strerror", None) or line_of(error)
        cure = "make room and resume the run"
        raise RunError(f"{path}: cannot be written ({reason}); {cure}") from None
