"""What the design says of the house, counted: `python tests/house.py [--verbose]`.

    python tests/house.py --draw docs/house.svg    # the picture of it

Exit code 1 where a count is above its bound.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "tools"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from drawing import draw
from syntax import (
    PACKAGES,
    ROOT,
    channel_settings,
    circles,
    imports,
    modules,
    names,
    override_lookups,
)
from upload_path import upload_path

# The bounds. Those above none come down, and none goes up.
CLASSES, MENTIONS, BRANCHES, DETECTIONS, CIRCLES, LONG, PASSED = 0, 0, 6, 4, 0, 0, 10
LINES = 400
TASK = r"\b(logits|num_classes|cross_entropy)\b"
# Where classes may be named: what is learned, what computes it, methods that are for classes, what
# is timed, and where it says what classification calls the scores.
OF_CLASSES = (
    *("fedpers/tasks/", "fedpers/models/", "clients/methods/", "strategies/methods/"),
    *("simulations/bench/", "fedpers/outputs.py"),
)
CHANNEL = "seal|seals|sealed|sealing|sealer|client_level|client_noise|masked|masking|bfv|ckks"
# Where a channel may be named: its room, the settings, the words of the report, its keys' command
# and what times it.
OF_CHANNELS = (
    "fedpers/channels/",
    "fedpers/config.py",
    "fedpers/paths.py",
    "fedpers/evaluation/words.py",
    "simulations/commands/keys.py",
    "simulations/bench/",
)


class Count(NamedTuple):
    """One thing that is counted.

    Attributes:
        what: in words.
        most: the bound.
        found: a line for each, ``path:line: text``.
    """

    what: str
    most: int
    found: Callable[[], list[str]]


def files_of_classes() -> list[str]:
    """Files outside of tasks, models and methods that know what a class is."""
    found = {}
    for path in modules().values():
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(OF_CLASSES):
            continue
        for text, line in names(path):
            if re.search(TASK, text):
                found.setdefault(where, f"{where}:{line}: {text.strip()}")
    return sorted(found.values())


def names_a_channel(text: str) -> bool:
    """Whether a channel's name is in a name or a text: ``SealedParts``, ``client_level``."""
    for name in re.findall(r"[A-Za-z_]\w*", text.replace("masked_fill", "")):  # torch's
        words = "_".join(re.findall("[A-Z]?[a-z]+|[A-Z]+", name)).lower()
        if re.search(rf"(^|_)({CHANNEL})(_|$)", words):
            return True
    return False


def mentions_of_a_channel() -> list[str]:
    """Names and texts of one particular channel outside of its room."""
    found = []
    for path in modules().values():
        where = path.relative_to(ROOT).as_posix()
        if not where.startswith(OF_CHANNELS):
            seen = {(line, text) for text, line in names(path) if names_a_channel(text)}
            found += [f"{where}:{line}: {text.strip()}" for line, text in sorted(seen)]
    return found


def branches_on_a_channel() -> list[str]:
    """Reads of a setting that says which channel it is, outside of its room."""
    return [line for line in _lines(channel_settings) if not line.startswith(OF_CHANNELS)]


def override_detections() -> list[str]:
    """Lines that find out whether a method was overridden."""
    return _lines(override_lookups)


def _lines(look: Callable[[Path], Iterable[int]]) -> list[str]:
    """The lines that ``look`` finds in the packages."""
    found = []
    for path in modules().values():
        where, lines = path.relative_to(ROOT).as_posix(), path.read_text().splitlines()
        found += [f"{where}:{n}: {lines[n - 1].strip()}" for n in sorted(set(look(path)))]
    return found


def import_circles() -> list[str]:
    """Circles of modules, lazy and type-only imports included."""
    graph = imports()
    found = []
    for members in circles(graph):
        inside = [f"{a} -> {b} (line {graph[a][b]})" for a in members for b in graph[a]]
        inside = [text for text in inside if text.split()[2] in members]
        found.append(f"{', '.join(members)}: {'; '.join(inside)}")
    return found


def long_files() -> list[str]:
    """Files of code above ``LINES`` lines, tests included."""
    paths = [path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")]
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return sorted(f"{p.relative_to(ROOT)}: {n} lines" for p, n in sizes.items() if n > LINES)


def files_of_an_upload() -> list[str]:
    """The files of ``upload_path``, in its order."""
    return [f"{file}: {', '.join(functions)}" for file, functions in upload_path().items()]


COUNTS = [
    Count("files that name classes outside of tasks, models, methods", CLASSES, files_of_classes),
    Count("mentions of one channel outside of channels", MENTIONS, mentions_of_a_channel),
    Count("branches on a channel's settings outside of channels", BRANCHES, branches_on_a_channel),
    Count("override detections", DETECTIONS, override_detections),
    Count("import circles, lazy and type-only ones included", CIRCLES, import_circles),
    Count(f"files above {LINES} lines, tests included", LONG, long_files),
    Count("files that a plain upload passes from training to mixture", PASSED, files_of_an_upload),
]


def main() -> int:
    """Print the counts; 1 if one is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="show each one")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the house instead, as SVG")
    given = parser.parse_args()
    if given.draw is not None:
        given.draw.write_text(draw(), encoding="utf-8")
        return 0
    failed = False
    for count in COUNTS:
        found = count.found()
        over = len(found) > count.most
        failed |= over
        print(f"{len(found):4} (at most {count.most}{', FAILED' if over else ''}): {count.what}")
        if given.verbose or over:
            print(*(f"       {line}" for line in found), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
