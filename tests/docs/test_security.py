"""The page for a security reviewer names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))


def test_each_row_names_a_test() -> None:
    tables = re.findall(r"^\|[^\n]*shown by \|\n\|[-|]*\|\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(tables) == 4 and len(rows) >= 25
    for row in rows:
        assert re.search(r"`tests/[^`]+` ?[,|]", row), row


@pytest.mark.parametrize("name", NAMED)
def test_it_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert function in known if function else any(one.startswith("test_") for one in known)
