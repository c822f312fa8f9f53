"""What the README shows is what works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def plug_in() -> str:
    (text,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return str(text)


def test_the_plug_in_is_under_30_lines() -> None:
    assert len(plug_in().splitlines()) < 30


def test_the_plug_in_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "fair.py").write_text(plug_in(), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "simulations.commands.cli",
        "run",
        str(ROOT / "configs/digits.yaml"),
    ]
    command += ["--backend", "serial", "strategy.name=fair:Fair", "rounds=2", "data.clients=4"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "round 2/2  4 clients" in done.stdout
    assert "personal" in done.stdout


@pytest.mark.parametrize("name", sorted(set(re.findall(r"configs/([a-z0-9-]+)\.yaml", README))))
def test_the_experiments_named_are_there(name: str) -> None:
    assert (ROOT / "configs" / f"{name}.yaml").is_file()


def test_every_relative_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
