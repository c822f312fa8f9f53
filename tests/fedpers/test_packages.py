"""A user's folder or module called as one of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpers.errors import ConfigError
from fedpers.packages import HOME, check_packages
from fedpers.registry import Registry

KINDS = {"folder": "{}/notes.txt", "package": "{}/__init__.py", "module": "{}.py"}


def put(folder: Path, name: str, kind: str) -> Path:
    """What hides ``name``, in ``folder``."""
    file = folder / KINDS[kind].format(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    return file if kind == "module" else file.parent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["clients", "strategies"])
def test_what_hides_a_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    check_packages()
    shadow = put(tmp_path, name, kind)
    # As after `pip install -e`: ours are found when nothing on the path has that name.
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() != HOME]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *elsewhere])
    monkeypatch.delitem(sys.modules, name, raising=False)
    takes = f"nothing else called '{name}' before fedpers' own, which it hides"
    line = f"import path: got '{shadow}', takes {takes}; rename it, or take {tmp_path} off PYTHON"
    for found in (check_packages, Registry("x", key="x", package=name).names):
        with pytest.raises(ConfigError) as error:
            found()
        assert str(error.value).startswith(line)


def test_what_is_found_after_ours_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("clients", "strategies"):
        put(tmp_path, name, "package")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(HOME), *sys.path, str(tmp_path)])
    check_packages()


def test_a_command_says_so_in_one_line(tmp_path: Path) -> None:
    shadow = put(tmp_path, "clients", "package")
    done = subprocess.run(
        [sys.executable, "-m", "simulations.commands.cli", "run", "x.yaml"],
        cwd=tmp_path,  # which -m puts first
        env={**os.environ, "PYTHONPATH": str(HOME)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: import path: got '{shadow}', takes")
    assert done.stderr.count("\n") == 1
