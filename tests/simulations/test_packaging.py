"""What pyproject.toml, constraints.txt and federation.toml promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.config_utils import load_and_validate
from flwr.cli.run.run import _parse_federation_config_overrides
from flwr.cli.typing import SuperLinkConnection

import fedpers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def names(requirements: list[str]) -> list[str]:
    return sorted(re.split(r"[^A-Za-z0-9_.-]", one, maxsplit=1)[0].lower() for one in requirements)


def requirements(project: dict[str, Any]) -> list[str]:
    extras = project["project"]["optional-dependencies"].values()
    return [*project["project"]["dependencies"], *(one for extra in extras for one in extra)]


def test_every_dependency_is_pinned(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    odd = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin)]
    assert [re.sub(r"[0-9.]+", "", pin) for pin in odd] == ["certifi>="]
    normal = {name.replace("_", "-") for name in names(pins)}
    assert {name.replace("_", "-") for name in names(requirements(project))} <= normal


def test_flower_installs_nothing(project: dict[str, Any], tmp_path: Path) -> None:
    overridden = project["tool"]["uv"]["override-dependencies"]
    assert names(overridden) == names(requirements(project))
    # What Flower's SuperLink does before a run, without a network.
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    command = [sys.executable, "-m", "uv", "sync", "--python", sys.executable, "--inexact"]
    command += ["--no-install-project", "--no-install-package", "flwr"]
    env = {
        **os.environ,
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_PROJECT_ENVIRONMENT": str(tmp_path / "env"),
    }
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    assert not list(packages.glob("*.dist-info"))


def test_flower_accepts_the_app() -> None:
    config, warnings = load_and_validate(ROOT / "pyproject.toml")
    assert warnings == []
    assert config["project"]["version"] == fedpers.__version__


def test_flower_accepts_federation_toml() -> None:
    connection = SuperLinkConnection(name="x", address=":local:")
    settings = _parse_federation_config_overrides([str(ROOT / "federation.toml")], connection)
    assert settings is not None
    assert (settings.num_supernodes, settings.client_resources_num_cpus) == (2, 1)
