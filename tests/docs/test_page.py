"""What docs/architecture.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `")
]
ON_THE_WAY = [row for row in ROWS if row[0].endswith(".py`") and len(row) == 3]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_files_and_folders_are_there() -> None:
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    paths = [path for path in re.findall(r"`([a-z_]+/[\w/.]*)`", text) if "NAME" not in path]
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "simulations" / path).exists(), path


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if "://" not in link]
    assert links and all((ROOT / "docs" / link).exists() for link in links)


@pytest.mark.parametrize("row", ON_THE_WAY, ids=lambda row: f"{row[0]} {row[1]}")
def test_who_is_on_the_way_of_an_update_is_defined_there(row: list[str]) -> None:
    (file,) = names(row[0])
    code = (ROOT / file).read_text(encoding="utf-8")
    for name in names(row[1]):
        for part in name.split("."):
            assert re.search(rf"(def|class) {part}\b", code), (file, name)


def test_the_way_is_long_enough() -> None:
    assert len(ON_THE_WAY) >= 12


@pytest.mark.parametrize("side", ["At the server", "On the client"])
def test_hooks_are_there(side: str) -> None:
    """Each hook that the tables tell of is one of a base class, or of the trainer."""
    table = PAGE.partition(f"\n{side} (")[2].partition("\n\n|")[2].partition("\n\n")[0]
    paths = [ROOT / "strategies/base.py", ROOT / "clients/base.py", ROOT / "fedpers/phases.py"]
    paths += (ROOT / "clients" / "training").glob("*.py")
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    found = re.findall(r"`(?:self\.|trainer\.)?([a-z_]+)(?:\(|`| =)", table)
    assert len(found) >= 10
    for name in found:
        assert re.search(rf"\b{name}\b", code), name
