"""Ends every process of a launch and removes its folder, however the launcher ends.

Run as a script beside the launcher: ``guard.py MARK FOLDER``. Its standard input is a pipe that
the launcher holds open. The pipe closes when the launcher is done, and also when it is killed.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time

import psutil

MARK = "FEDPERS_LAUNCH"
GRACE = 2.0


def marked(mark: str) -> list[psutil.Process]:
    """The processes of the launch ``mark`` that run, with their descendants.

    Every process inherits the launcher's mark in its environment, also where it has left the
    process group or has lost its parent. Ray's agents overwrite their environment with their
    title; they are found as children.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
        except psutil.Error:  # it has ended, or it is another user's
            continue
    return [process for process in found.values() if _runs(process)]


def stop(mark: str) -> None:
    """End the processes of the launch ``mark``: SIGTERM, and after a grace period SIGKILL."""
    deadline = time.monotonic() + GRACE
    seen: dict[int, psutil.Process] = {}
    # A child that outlives its marked parent is no longer found: remember who was seen.
    while alive := _add(seen, marked(mark)):
        for process in alive:
            sign = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
            try:
                process.send_signal(sign)  # psutil checks that the id was not given to another
            except psutil.Error:
                continue
        psutil.wait_procs(alive, timeout=0.5)


def _add(seen: dict[int, psutil.Process], new: list[psutil.Process]) -> list[psutil.Process]:
    seen.update({process.pid: process for process in new})
    return [process for process in seen.values() if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def main() -> None:
    """Wait for the launcher's end, then clean up after it."""
    mark, folder = sys.argv[1:]
    # A terminal that closes, or a Ctrl-C in it, is for the launcher.
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    sys.stdin.buffer.read()
    stop(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
