"""Whether a method passes the leak test: tried once for its code, its model and the settings, in a
process of its own, and kept."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from clients.leaktest.rehearsal import Rehearsal, libraries
from clients.leaktest.settings import packages_of, settings
from fedpers.cache import cache_folder
from fedpers.config import Config, config_from_json
from fedpers.data import FederatedData, Signature
from fedpers.errors import ConfigError
from fedpers.pretrained import PREFIX, SENTENCE
from fedpers.privacy.leaktest import Finding
from fedpers.privacy.neighbours import TARGETS, shortened

# Threads of pyarrow, which puts its locks in order at a fork, and of tqdm, which only looks on.
IDLE = ("jemalloc_bg_thd", "tqdm_monitor")
LIMIT = 600.0  # seconds
LIBRARIES = ("torch", "opacus", "peft", "numpy")
log = logging.getLogger("fedpers")


def check_leaks(
    config: Config,
    algorithm: str,
    server_params: Sequence[str],
    data: FederatedData,
    run: str,
) -> None:
    """Refuse a method through which something leaves a client that no noise covers.

    Where no example is protected by itself there is nothing to try. Processes that ask at once wait
    for the first. A verdict on our own code is kept for as long as
    no file of it changes; one on code from outside for one run, as what else that reads or imports
    is not known.

    Args:
        config: the run's settings.
        algorithm, server_params: see ``ClientHost``.
        data: of the run: what a model reads of it, what is learned, and whose it is.
        run: its name.

    Raises:
        ConfigError: naming what moved, by how much, in which message, and the cure.
    """
    from filelock import FileLock

    if not config.privacy.by_example:
        return
    packages = packages_of(config, algorithm)
    generator = torch.Generator().manual_seed(0)
    targets = data.task.made_up(TARGETS, generator)
    signature, targets = shortened(data.signature, targets)
    found = settings(config, own=not packages) | {"task": asdict(data.task.settings())}
    asked = {
        "config": found,
        "algorithm": algorithm,
        "server_params": list(server_params),
        "signature": [signature.kind, list(signature.shape)],
        "targets": [str(targets.dtype).removeprefix("torch."), targets.tolist()],
        # What a node with a single client is tried with is the same on all of them.
        "clients": data.clients[:3] if packages and len(data.clients) > 1 else [],
        "brief": not packages,
    }
    key = digest(asked, packages, run)
    folder = cache_folder() / "leaktest"
    path = folder / f"{key}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            verdict = _read(path)
            if verdict is None:
                log.info("%s is tried on made-up data for what may leak", algorithm)
                # What code from outside has kept in this process would hide what it keeps.
                here = not packages and may_fork()
                try:
                    verdict = tried(asked) if here else _tried_apart(asked)
                except RuntimeError as error:
                    can = "a method that can be tried on made-up data before a private run"
                    raise ConfigError("strategy.name", algorithm, f"{can} ({error})") from error
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(json.dumps(verdict), encoding="utf-8")
                os.replace(temporary, path)
    except OSError as error:
        takes = f"a folder that can be written ({error.strerror or error})"
        raise ConfigError("FEDPERS_CACHE", str(folder), takes) from None
    if (finding := verdict["finding"]) is not None:
        raise refusal(config, algorithm, Finding(*finding))


def refusal(config: Config, algorithm: str, finding: Finding) -> ConfigError:
    """The line that a run is refused with."""
    key, got = "strategy.name", algorithm
    if ":" in config.model.name:
        key, got = "model.name", config.model.name
        if ":" in algorithm:
            got = f"{got} with strategy.name={algorithm}"
    takes = f"a method of which nothing but noised sums depends on an example; {finding.line()}"
    return ConfigError(key, got, takes, finding.cure)


def digest(asked: dict[str, Any], packages: Sequence[str], run: str) -> str:
    """A name for what is tried: the question, the code, and what it runs on."""
    found = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    about = [platform.python_version(), *(version(name) for name in LIBRARIES)]
    found.update(json.dumps([about, packages, run if packages else ""]).encode())
    for name in ("fedpers", "clients", *packages):
        for path in files_of(name):
            found.update(json.dumps([name, path.name]).encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def files_of(package: str) -> Iterator[Path]:
    """The source files of a top-level package or module."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        yield from sorted(Path(folder).rglob("*.py"))
    if spec.submodule_search_locations is None and spec.origin is not None:
        yield Path(spec.origin)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and "finding" in found else None
    except (OSError, ValueError):
        return None


def tried(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict, had in this process; its worlds are forked from it.

    Raises:
        RuntimeError: one of them broke down.
    """
    (kind, shape), (dtype, values) = asked["signature"], asked["targets"]
    made = Signature(kind, tuple(shape)), torch.tensor(values, dtype=getattr(torch, dtype))
    config = config_from_json(json.dumps(asked["config"]))
    untouched = libraries(config.model.name.startswith((PREFIX, SENTENCE)))
    threads = torch.get_num_threads()
    try:
        known = (asked["algorithm"], asked["server_params"], *made, asked["clients"], untouched)
        return {"finding": Rehearsal(config, *known, brief=asked["brief"]).refusal()}
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Try what standard input asks; write the verdict to the file named."""
    found = tried(json.loads(sys.stdin.read()))
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")


def may_fork() -> bool:
    """Whether nothing else is at work in this process: others' locks would stay locked in a fork of
    it."""
    try:
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    except OSError:
        return False
    idle = sum(name in IDLE for name in names)
    idle += sum(thread.name in IDLE for thread in threading.enumerate())
    return len(names) - idle == 1


def _tried_apart(asked: dict[str, Any]) -> dict[str, Any]:
    """The verdict, had in a fresh process with this one's path.

    Raises:
        RuntimeError: there is none; its last word.
    """
    paths = [entry or os.getcwd() for entry in sys.path]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "verdict.json"
        code = "from clients.leaktest.verdict import main; main()"
        command = [sys.executable, "-P", "-c", code, str(into)]
        try:
            ran = subprocess.run(
                command,
                input=json.dumps(asked),
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
            said = (ran.stderr.strip().splitlines() or ["no word"])[-1]
        except subprocess.TimeoutExpired:
            said = f"it took longer than {LIMIT:g} s"
        if (found := _read(into)) is not None:
            return found
    raise RuntimeError(said)
