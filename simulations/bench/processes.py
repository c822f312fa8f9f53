"""Rounds of local training in processes of their own, which is how they run, by the clock on the
wall: ``cnn_round``.

A child is this module as a program. It prepares its round and says "ready"; then it does the round
whenever it reads "go", and says "done". What its clients would upload stays in it: neither sending
nor combining is in the time. Waiting, it reads its standard input and computes nothing; when that
closes, as it does when the parent ends in whatever way, it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fedpers.config import Config, load_config
from fedpers.errors import RunError
from simulations.bench.rounds import CnnLoop, HostRounds, TinyLoop, cnn_config
from simulations.bench.row import Row, by_turns, folder_of_data

JOBS: dict[str, Callable[[Config, Path, int, int], CnnLoop | HostRounds | TinyLoop]] = {
    "host": HostRounds,
    "cnn-loop": CnnLoop,
    "tiny-loop": TinyLoop,
}
SETTINGS = "settings.yaml"
ALLOCATORS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # what would change glibc's defaults


@contextmanager
def round_of(
    job: str, config: Config, folder: Path, processes: int
) -> Iterator[Callable[[], None]]:
    """A function that has one round of ``config`` done and returns when it is.

    Args:
        job: one of ``JOBS``.
        config: over data that have been written.
        folder: for what the clients keep.
        processes: among how many the clients are dealt.

    Raises:
        RunError: a child ended before its time; its own words are on the standard error.
    """
    folder.mkdir(exist_ok=True)
    (folder / SETTINGS).write_text(config.to_yaml(), encoding="utf-8")
    with ExitStack() as stack:
        children = [
            stack.enter_context(_child(job, folder, share, processes)) for share in range(processes)
        ]
        for child in children:
            _expect(child, "ready")

        def one_round() -> None:
            for child in children:
                assert child.stdin is not None
                with suppress(BrokenPipeError):  # it has gone, as its missing answer says
                    child.stdin.write("go\n")
                    child.stdin.flush()
            for child in children:
                _expect(child, "done")

        yield one_round


@contextmanager
def _child(job: str, folder: Path, share: int, shares: int) -> Iterator[subprocess.Popen[str]]:
    """A child, which is gone when this is left: it has nothing to lose."""
    root = str(Path(__file__).parents[2])
    env = {name: value for name, value in os.environ.items() if not name.startswith(ALLOCATORS)}
    env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, job, str(folder), str(share), str(shares)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the parent, which then ends its children
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _expect(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None
    said = child.stdout.readline().strip()
    if said != word:
        raise RunError(f"bench: a process said {said or 'nothing'!r} in place of {word!r}")


def cnn_round(name: str, repeats: int) -> Row:
    """A round of the whole CNN, between processes, by the clock on the wall."""
    method, _, precision = name.partition("-cnn")
    precision = precision.removeprefix("-") or "float32"
    with folder_of_data() as folder:
        config = cnn_config(method, folder)
        own = replace(config, training=replace(config.training, precision=precision))
        with (
            round_of("cnn-loop", config, folder / "usual", 1) as usual,
            round_of("host", own, folder / "ours", 2) as ours,
        ):
            times = by_turns(usual, ours, max(3, repeats // 3), time.perf_counter)
    work = {"fedavg": "FedAvg", "fedcp": "FedCP as published"}[method]
    return Row(
        name,
        f"local training of a round of {work}, 20 clients, CNN: one process, two threads, glibc's "
        "allocator as it is, a model and a DataLoader a client",
        f"two processes of one thread as in a simulation, half of the clients each, in {precision} "
        "(wall time; uploads stay in the processes on both sides)",
        *times,
        {"fedavg": 1.8, "fedcp": 2.0}[method],
    )


def main() -> None:
    """Do a round for every line of the standard input."""
    job, folder, share, shares = sys.argv[1:]
    config = load_config(Path(folder) / SETTINGS)
    rounds = JOBS[job](config, Path(folder), int(share), int(shares))
    print("ready", flush=True)
    for _ in sys.stdin:
        rounds.round()
        print("done", flush=True)


if __name__ == "__main__":
    main()
