"""How far runs are that other processes are at work on, by the files that they write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from fedpers.config import load_config
from fedpers.errors import FedpersError
from simulations.experiments.runs import SETTINGS

EVERY = 10.0  # seconds between two looks


@contextmanager
def following(
    folders: Sequence[Path], say: Callable[[str], None], every: float = EVERY
) -> Iterator[None]:
    """While the block runs, say of each run that has got on: its name, and its round of how many.

    Args:
        folders: of the runs; they need not be there yet.
    """
    over = Event()
    seen = {folder: rounds_done(folder) for folder in folders}

    def look() -> None:
        while not over.wait(every):
            for folder, before in seen.items():
                done = rounds_done(folder)
                if done > before and not (folder / "report.json").exists():
                    say(f"{folder.name}: round {done} of {_rounds(folder)}")
                seen[folder] = done

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def rounds_done(folder: Path) -> int:
    """How many rounds of a run are over."""
    try:
        return (folder / "rounds.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _rounds(folder: Path) -> str:
    try:
        return str(load_config(folder / SETTINGS).rounds)
    except FedpersError:
        return "?"
