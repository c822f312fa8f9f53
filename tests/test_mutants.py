"""That the table of mutants is one of this tree; `make mutants` tries them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "mutants" / "run.py"


def test_each_mutant_changes_code_that_is_there_and_names_tests_that_are() -> None:
    found = subprocess.run([sys.executable, SCRIPT, "--list"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) >= 30
