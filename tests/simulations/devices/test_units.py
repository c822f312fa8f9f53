"""Templates for supervision."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpers.errors import ConfigError
from simulations.backends.flower import environment
from simulations.commands.cli import app
from simulations.devices.units import FILES, write_units


def test_units_are_written_and_never_over_others(tmp_path: Path) -> None:
    out = tmp_path / "units"
    result = CliRunner().invoke(app, ["devices", "units", "--out", str(out)])
    assert result.exit_code == 0
    assert result.stdout.split() == [str(out / name) for name in FILES]
    (out / "Dockerfile").write_text("mine")
    for name in ("fedpers-superlink.service", "fedpers-supernode@.service"):
        (out / name).unlink()
    with pytest.raises(ConfigError, match=r"^--out: got .*; remove Dockerfile or name another"):
        write_units(out)
    assert (out / "Dockerfile").read_text() == "mine" and len(list(out.iterdir())) == 1
    result = CliRunner().invoke(app, ["devices", "units", "--out", str(out)])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_the_variables_are_flowers(tmp_path: Path) -> None:
    import flwr

    known = "\n".join(path.read_text() for path in Path(flwr.__file__).parent.rglob("*.py"))
    own = "\n".join(environment(tmp_path, "mark"))
    for name in set(re.findall(r"FLWR_[A-Z_]+", "\n".join([own, *FILES.values()]))):
        assert f'"{name}"' in known, name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    # The programs and the user are this machine's, or it would miss them.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("flower-superlink", "flower-supernode"):
        (programs / name).symlink_to("/bin/true")
    paths = []
    for path in write_units(tmp_path / "units")[:2]:
        text = path.read_text().replace("/opt/fedpers/bin", str(programs))
        path.write_text(text.replace("User=fedpers", f"User={os.getuid()}"))
        name = path.name.replace("@.", "@clinic-7.")
        paths.append(path.rename(path.with_name(name)))
    found = subprocess.run(
        ["systemd-analyze", "verify", *map(str, paths)], capture_output=True, text=True, timeout=60
    )
    said = [line for line in found.stderr.splitlines() if "fedpers" in line]
    assert said == [] and found.returncode == 0, found.stderr
