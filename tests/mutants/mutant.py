"""One sabotage of the code, and the tests that should see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        name: what is sabotaged.
        file: from the root of the tree.
        old: what is there, exactly once.
        new: what takes its place.
        tests: that should see it, as pytest is told of them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def missing(self, tree: Path) -> str | None:
        """Why it is no mutant of this tree (any more): the code that it changes, or a test, is not
        there. None if all is."""
        found = (tree / self.file).read_text(encoding="utf-8").count(self.old)
        if found != 1:
            return f"{self.file} holds the code that it changes {found} times, takes once"
        for test in self.tests:
            file, _, function = test.partition("::")
            if f"def {function.partition('[')[0]}(" not in (tree / file).read_text(
                encoding="utf-8"
            ):
                return f"there is no test {test}"
        return None

    def apply(self, tree: Path) -> None:
        """Change the file in a copy of the tree."""
        path = tree / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def of(file: str, *tests: str) -> tuple[str, ...]:
    """Tests of one file."""
    return tuple(f"tests/{file}::{test}" for test in tests)
