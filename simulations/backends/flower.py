"""Flower's processes, for a launch or a rehearsal: a private space that leaves nothing behind.

Each has a home, a port and an empty working folder of its own, so that no other run's environment,
working folder or code can leak into it; and it is gone at the end, however that comes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fedpers.errors import FedpersError, RunError
from simulations.backends import guard, network

LOG = "flower.log"

CONNECTION = "launch"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own name for it
TOKEN_BYTES = 32
START = 60.0  # seconds for a SuperLink to answer, on a machine that is busy
_LOOK = """
import socket, sys, time
while True:
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5).close()
        break
    except OSError:
        time.sleep(float(sys.argv[2]))
"""
_COMMAND = 120.0  # seconds for one Flower command
_END = 30.0  # seconds for Flower to note the end of a run whose ServerApp has ended
POLL = 0.1


@dataclass(frozen=True)
class Space:
    """The private folder, environment and, where there is one, network of one launch.

    Attributes:
        within: words before a command that have it run in the launch's own network; none where it
            shares the machine's.
        shares: why it does.
    """

    folder: Path
    env: dict[str, str] = field(repr=False)  # Ray's token is in it
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    within: list[str] = field(default_factory=list)
    shares: str = ""

    def path(self, name: str) -> Path:
        return self.folder / name


@contextmanager
def private_space(shares: str) -> Iterator[Space]:
    """A private folder, environment and network. When left, no process and no file of the launch
    stays.

    Args:
        shares: why the launch has to share the machine's network; a network of its own if empty,
            where the system gives one.
    """
    # Ray's socket paths start with this folder and may have 107 bytes.
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="fedpers-", dir=parent if len(parent) < 25 else "/tmp"))
    mark = uuid.uuid4().hex
    env, processes, within = environment(folder, mark), list[subprocess.Popen[bytes]](), list[str]()
    for name in ("home", "cwd", "app"):
        folder.joinpath(name).mkdir()
    if not shares:
        try:
            holder, within = network.hold(env, str(folder))
            processes.append(holder)
        except network.NoNetwork as reason:
            shares = f"this system gives no other ({reason})"
    space = Space(folder, env, processes, within, shares)
    watcher = subprocess.Popen(
        [sys.executable, "-P", guard.__file__, mark, str(folder)],
        stdin=subprocess.PIPE,
        # Whoever waits for the end of this command's output need not wait for its cleaning up.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    try:
        yield space
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait()
        for process in space.processes:  # they have ended; the system forgets them now
            process.wait()


def environment(folder: Path, mark: str) -> dict[str, str]:
    """What the processes of a launch find in their environment; it holds a secret, Ray's token."""
    scripts = sysconfig.get_path("scripts")
    env = {
        **os.environ,
        guard.MARK: mark,
        # The SuperLink looks for its helpers there, also where the venv is not activated.
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "FLWR_HOME": str(folder / "home"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
    # Relative paths would mean something else in the working folder of the launch.
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    home = Path(__file__).parents[2]
    if str(home) != sysconfig.get_path("purelib"):  # a checkout, perhaps not installed
        paths.append(str(home))
    env["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in paths)
    if "FEDPERS_DATA" in env:
        env["FEDPERS_DATA"] = str(Path(env["FEDPERS_DATA"]).expanduser().resolve())
    if joins_cluster():
        # The workers of a cluster that is there have its environment, and what a job adds to it.
        own = {name: env[name] for name in ("FEDPERS_DATA", "FEDPERS_CACHE") if name in env}
        env.setdefault(JOB_CONFIG, json.dumps({"runtime_env": {"env_vars": own}}))
    else:
        # Else Ray may join a cluster that somebody else's run has noted in /tmp/ray.
        env["RAY_TMPDIR"] = str(folder)
        # Ray listens on all addresses: without a token whoever reaches it runs code as the user.
        env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(TOKEN_BYTES)
    return env


def joins_cluster() -> bool:
    """Whether Ray's nodes are somebody else's, as the user said; else a launch starts its own."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")  # as Ray reads it


def listens(space: Space, superlink: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a SuperLink is reached at its port, in the space's network."""
    looking = subprocess.Popen(
        [*space.within, sys.executable, "-I", "-S", "-c", _LOOK, str(port), str(POLL)],
        env=space.env,
        cwd=space.path("cwd"),
        start_new_session=True,
    )
    space.processes.append(looking)
    deadline = time.monotonic() + START
    while superlink.poll() is None and time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            looking.wait(POLL)
            # Whoever else may answer there: a SuperLink that has lost the port ends.
            time.sleep(POLL)
            return superlink.poll() is None
    looking.kill()
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def follow(
    space: Space,
    run_id: str,
    superlink: subprocess.Popen[bytes],
    show: Callable[[str], None],
    *,
    verbose: bool,
) -> None:
    """Show the run's log until it ends.

    Raises:
        FedpersError: the ServerApp named a mistake that the user can mend.
        RunError: the run did not complete.
    """
    with space.path(LOG).open("wb") as log:
        stream = popen(space, ["flwr", "log", run_id, CONNECTION, "--stream"], log)
    events, flower = Lines(space.path("events.jsonl")), Lines(space.path(LOG))
    outcome: dict[str, Any] | None = None
    deadline = float("inf")
    while True:
        ended = stream.poll() is not None or time.monotonic() > deadline
        for line in flower.new():
            if verbose:
                show(line)
        for line in events.new():
            try:
                event = json.loads(line)
            except ValueError:  # a full disk took a part of it
                continue
            if "outcome" in event:
                outcome, deadline = event["outcome"], time.monotonic() + _END
                if outcome.get("user"):
                    raise FedpersError(outcome["error"])
            elif not event["text"].startswith("error: "):  # the outcome says it again
                show(event["text"])
        if ended:
            break
        if superlink.poll() is not None:
            raise RunError(f"Flower's SuperLink ended with code {superlink.returncode}")
        time.sleep(POLL)
    if outcome is not None and not outcome["ok"]:
        raise RunError(outcome["error"])
    status, details = _status(space, run_id)
    if status != "finished:completed":
        raise RunError(f"Flower ended the run as {status} ({' '.join(details.split())})")


def _status(space: Space, run_id: str) -> tuple[str, str]:
    """The run's status and the reason for it, once it is final or has had time to become so."""
    deadline = time.monotonic() + _END
    while True:
        answer = flwr(space, "ls", CONNECTION, "--run-id", run_id)
        status, details = parse_status(answer)
        if status.startswith("finished:") or time.monotonic() > deadline:
            return status, details
        time.sleep(1)


def parse_status(answer: dict[str, Any]) -> tuple[str, str]:
    """Status and details of the one run in the answer of ``flwr ls --run-id ID --format json``.

    Raises:
        RunError: it holds no run.
    """
    try:
        run = answer["runs"][0]
        return str(run["status"]), str(run.get("status-details") or "no reason given")
    except (KeyError, IndexError, TypeError):
        raise RunError(f"flwr ls: cannot read its answer {answer!r}") from None


def flwr(space: Space, *arguments: str) -> dict[str, Any]:
    """The answer of one Flower command.

    Raises:
        RunError: it failed, with its own reason.
    """
    name = f"flwr {arguments[0]}"
    process = popen(space, ["flwr", *arguments, "--format", "json"], subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=_COMMAND)
    except subprocess.TimeoutExpired:
        raise RunError(f"{name}: no answer in {_COMMAND:g} s") from None
    # What a library warns of may stand before the answer.
    text = output.decode(errors="replace")
    lines = text.splitlines(keepends=True)
    start = next((k for k, line in enumerate(lines) if line.startswith("{")), len(lines))
    try:
        answer, _ = json.JSONDecoder().raw_decode("".join(lines[start:]))
    except json.JSONDecodeError:
        raise RunError(f"{name}: {last_line(text)}") from None
    if not answer.get("success"):
        raise RunError(f"{name}: {answer.get('error-message') or last_line(text)}")
    return dict(answer)


def popen(
    space: Space,
    command: Sequence[str],
    output: IO[bytes] | int,
    env: Mapping[str, str] | None = None,
    keeps: Sequence[int] = (),
    *,
    outside: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program in a space.

    Args:
        env: is added to the space's environment.
        keeps: open files that it has too.
        outside: of the space's network, in the machine's.
    """
    name, *arguments = command
    program = shutil.which(name, path=space.env["PATH"])
    if program is None:
        raise RunError(f"{name}: not found; install fedpers into the environment it runs in")
    process = subprocess.Popen(
        [*(() if outside else space.within), program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**space.env, **(env or {})},
        # Empty: what lies in the working folder would hide installed packages in Ray's workers.
        cwd=space.path("cwd"),
        pass_fds=keeps,
        # A Ctrl-C is for the launcher, which then ends them all.
        start_new_session=True,
    )
    space.processes.append(process)
    return process


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


class Lines:
    """The lines that others add to a file, whole ones only."""

    def __init__(self, path: Path) -> None:
        self.path, self.read, self.rest = path, 0, b""

    def new(self) -> list[str]:
        """The lines written since the last call."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.read)
            added = file.read()
            self.read += len(added)
            *lines, self.rest = (self.rest + added).split(b"\n")
            return [line.decode("utf-8", errors="replace") for line in lines]
        return []
