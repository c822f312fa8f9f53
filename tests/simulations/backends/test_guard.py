"""The guard ends processes that it can only know by their mark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from simulations.backends import guard

# Starts a process in a session of its own, which ignores SIGTERM, and ends itself: an orphan.
ORPHAN = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN);"
     "print('ready', flush=True); time.sleep(300)"],
    start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid)
"""


def start_orphan(mark: str) -> psutil.Process:
    env = {**os.environ, guard.MARK: mark}
    command = [sys.executable, "-c", ORPHAN]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    return psutil.Process(int(done.stdout))


def wait_for(happens: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happens()


def test_an_orphan_that_ignores_sigterm_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE", 0.2)
    mark, other = uuid.uuid4().hex, uuid.uuid4().hex
    orphan, stranger = start_orphan(mark), start_orphan(other)
    try:
        assert [process.pid for process in guard.marked(mark)] == [orphan.pid]
        guard.stop(mark)
        assert guard.marked(mark) == []
        assert [process.pid for process in guard.marked(other)] == [stranger.pid]
    finally:
        for process in (orphan, stranger):
            if process.is_running():
                process.kill()


def test_the_guard_cleans_up_when_its_launcher_is_killed(tmp_path: Path) -> None:
    mark, folder = uuid.uuid4().hex, tmp_path / "launch"
    folder.mkdir()
    (folder / "file").touch()
    # The launcher: holds the pipe to the guard, starts a marked process, and is killed.
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, time\n"
            f"subprocess.Popen([sys.executable, {guard.__file__!r}, {mark!r}, {str(folder)!r}],"
            "stdin=subprocess.PIPE)\n"
            f"env = {{**os.environ, {guard.MARK!r}: {mark!r}}}\n"
            "subprocess.Popen(['sleep', '300'], env=env, start_new_session=True)\n"
            "time.sleep(300)",
        ]
    )
    assert wait_for(lambda: len(guard.marked(mark)) == 1)
    assert folder.exists()
    launcher.kill()
    launcher.wait()
    assert wait_for(lambda: not folder.exists())
    assert guard.marked(mark) == []
