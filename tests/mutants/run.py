"""Sabotage the privacy code, a small change at a time, and see that a test notices: `make mutants`.

    python tests/mutants/run.py [--list | NAME ...]

Each mutant changes a copy of this tree, in which the tests that should see it are run, in a process
of their own. First all of those run in a copy that nobody changed: a test that fails by itself
would see everything.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: it must not start threads here

import importlib
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
from account import ACCOUNT, FIGURES
from leaks import CONFINED, DOOR
from masked import MASKED
from mutant import Mutant
from noise import ADDED_NOISE, CLIPPING
from randomness import RANDOMNESS

MUTANTS = [*CLIPPING, *ADDED_NOISE, *RANDOMNESS, *ACCOUNT, *FIGURES, *CONFINED, *DOOR, *MASKED]
ROOT = Path(__file__).parents[2]
COPIED = ("clients", "configs", "fedpers", "simulations", "strategies", "tests")
OPTIONS = "-x -q -rf --tb=line --disable-warnings -p no:cacheprovider"
ONE, ALL = 180.0, 900.0  # seconds that the tests of one mutant, and those of all, may take
# With which a mutant fails that is not what it is meant to be.
MISTAKES = "NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError"
# What takes seconds to import and is nobody's to sabotage: each process is forked after that.
OTHERS = ("torch", "opacus", "opacus.grad_sample", "opacus.accountants", "peft", "sklearn.datasets")
OTHERS += ("flwr.app", "flwr.clientapp", "flwr.serverapp", "hypothesis", "pandas", "scipy.stats")


class Outcome(NamedTuple):
    """What pytest made of a copy: its exit code, what it said, and the seconds it took."""

    code: int | None
    said: str
    seconds: float

    @property
    def failed(self) -> str | None:
        """The test that failed; None where none did, or for another reason than its judgement."""
        found = re.search(r"^FAILED (\S+)", self.said, re.MULTILINE)
        mistake = re.search(rf"^E +({MISTAKES})\b", self.said, re.MULTILINE)
        return found.group(1) if self.code == 1 and found and not mistake else None


def copy_of_tree(folder: Path) -> Path:
    """The packages, settings and tests of this tree, in a new folder."""
    tree = folder / "tree"
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    return tree


def run_tests(tree: Path, tests: Sequence[str], limit: float) -> Outcome:
    """Run tests in a tree, in one process, up to the first that fails."""
    started, said = time.monotonic(), tree.parent / "said"
    child = get_context("fork").Process(target=_pytest, args=(tree, tests, said))
    child.start()
    child.join(limit)
    if child.is_alive():
        assert child.pid is not None
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    return Outcome(child.exitcode, said.read_text(), time.monotonic() - started)


def _pytest(tree: Path, tests: Sequence[str], said: Path) -> None:
    os.setsid()  # what tests start ends with them
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    for output in (1, 2):
        os.dup2(file, output)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
    code = pytest.main([*OPTIONS.split(), "-m", "", *tests])
    sys.stdout.flush()
    os._exit(code)


def tried(mutant: Mutant) -> Outcome:
    """What the tests of a mutant say of it."""
    with tempfile.TemporaryDirectory(prefix="fedpers-mutant-") as folder:
        tree = copy_of_tree(Path(folder))
        mutant.apply(tree)
        return run_tests(tree, mutant.tests, ONE)


def unchanged(mutants: Sequence[Mutant]) -> Outcome:
    """What the tests of some mutants say of the tree as it is."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    with tempfile.TemporaryDirectory(prefix="fedpers-mutant-") as folder:
        return run_tests(copy_of_tree(Path(folder)), [*tests], ALL)


def main() -> None:
    """Try the mutants named, or all, or list them; exit code 1 if one survives or is none of this
    tree any more."""
    listed = sys.argv[1:] == ["--list"]
    names = [] if listed else sys.argv[1:]
    known = {mutant.name: mutant for mutant in MUTANTS}
    if strangers := [name for name in names if name not in known]:
        sys.exit(f"mutant: got {strangers[0]!r}, takes one of {', '.join(known)}")
    chosen = [known[name] for name in names] or MUTANTS
    if missing := {m.name: why for m in chosen if (why := m.missing(ROOT)) is not None}:
        lines = (f"mutant {name!r}: {why}" for name, why in missing.items())
        sys.exit("\n".join((*lines, "write them anew in tests/mutants")))
    if listed:
        print(*known, sep="\n")
        return
    for name in OTHERS:
        importlib.import_module(name)
    before = unchanged(chosen)
    if before.code != 0:
        print(before.said)
        sys.exit("the tests fail in the tree as it is")
    width = max(len(mutant.name) for mutant in chosen)
    print(f"{len(chosen)} mutants; their tests pass without them ({before.seconds:.0f} s)")
    survived = 0
    for mutant in chosen:
        found = tried(mutant)
        by = found.failed or ("SURVIVED" if found.code == 0 else "NO TEST JUDGED IT")
        print(f"{mutant.name:{width}}  {found.seconds:4.0f} s  {by}", flush=True)
        survived += found.failed is None
        if found.failed is None and found.code != 0:
            print(found.said)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
