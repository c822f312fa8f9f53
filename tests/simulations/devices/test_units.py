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
from simulations.devices.certificates import Authority, make_certificates, make_node_key
from simulations.devices.gateway import BRINGS, has_nginx, nginx
from simulations.devices.units import CONF, FILES, write_units


def test_units_are_written_and_never_over_others(tmp_path: Path) -> None:
    out = tmp_path / "units"
    result = CliRunner().invoke(app, ["devices", "units", "--out", str(out)])
    assert result.exit_code == 0
    assert result.stdout.split() == [str(out / name) for name in (*FILES, CONF)]
    (out / "Dockerfile").write_text("mine")
    for name in (*FILES, CONF):
        if name != "Dockerfile":
            (out / name).unlink()
    with pytest.raises(ConfigError, match=r"^--out: got .*; remove Dockerfile or name another"):
        write_units(out)
    assert (out / "Dockerfile").read_text() == "mine" and len(list(out.iterdir())) == 1
    result = CliRunner().invoke(app, ["devices", "units", "--out", str(out)])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_a_federation_of_ones_own_is_in_the_gateways_settings(tmp_path: Path) -> None:
    make_node_key(tmp_path, "node")
    given = tmp_path / "federation.yaml"
    given.write_text("devices: {clinic-7: {key: node.pub}}\nlisten: 10.0.0.1:443\n")
    out = tmp_path / "units"
    command = ["devices", "units", "--out", str(out), "--federation", str(given)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert "ListenStream=10.0.0.1:443\n" in (out / "fedpers-gateway.socket").read_text()
    assert (out / "federation.yaml").read_text() == given.read_text()
    shown = CliRunner().invoke(app, ["devices", "gateway", str(given)])
    assert shown.exit_code == 0 and shown.stdout == (out / CONF).read_text()
    assert "listen 10.0.0.1:443 ssl;" in shown.stdout and "CN=clinic\\-7:" in shown.stdout


@pytest.mark.skipif(not has_nginx(), reason=f"nginx is not installed: {BRINGS}")
def test_nginx_takes_the_settings(tmp_path: Path) -> None:
    certificates, authority = make_certificates(tmp_path), Authority()
    files = {
        "/etc/fedpers/gateway.pem": certificates.server,
        "/etc/fedpers/gateway.key": certificates.server_key,
        "/etc/fedpers/devices-ca.crt": authority.write(tmp_path / "devices-ca.crt"),
        "/etc/fedpers/revoked.pem": authority.revoke([], tmp_path / "revoked.pem"),
        "/etc/fedpers/ca.crt": certificates.ca,
        "/var/lib/fedpers-gateway": tmp_path,
    }
    write_units(tmp_path / "units")
    text = (tmp_path / "units" / CONF).read_text()
    for name, path in files.items():
        assert name in text
        text = text.replace(name, str(path))
    (tmp_path / CONF).write_text(text)
    command = [nginx(), "-t", "-p", str(tmp_path), "-c", str(tmp_path / CONF), "-e", "stderr"]
    tested = subprocess.run(command, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr


def test_what_keeps_other_users_of_the_server_off() -> None:
    superlink, gateway = FILES["fedpers-superlink.service"], FILES["fedpers-gateway.service"]
    assert "PrivateNetwork=yes" in superlink and "--host 127.0.0.1" in superlink
    assert "PrivateNetwork=yes" in gateway
    assert "JoinsNamespaceOf=fedpers-superlink.service" in gateway
    for name, text in FILES.items():
        if name.endswith(".service"):
            assert "User=" in text and "Environment=HOME=/var/lib/" in text, name
            assert "flower-supernode" not in text


def test_the_variables_are_flowers(tmp_path: Path) -> None:
    import flwr

    known = "\n".join(path.read_text() for path in Path(flwr.__file__).parent.rglob("*.py"))
    own = "\n".join(environment(tmp_path, "mark"))
    for name in set(re.findall(r"FLWR_[A-Z_]+", "\n".join([own, *FILES.values()]))):
        assert f'"{name}"' in known, name


def test_the_options_are_the_commands(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["device", "run", "--help"], env={"COLUMNS": "200"}).stdout
    for text in (FILES["fedpers-device@.service"], FILES["Dockerfile"]):
        command = text[text.index("device run") :]
        asked = set(re.findall(r"--[a-z-]+", command.split("\nRestart")[0]))
        assert asked and all(option in said for option in asked), asked


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    # The programs and the user are this machine's, or it would miss them.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("flower-superlink", "fedpers", "nginx"):
        (programs / name).symlink_to("/bin/true")
    paths = []
    for path in write_units(tmp_path / "units"):
        if path.suffix not in (".service", ".socket"):
            continue
        text = path.read_text().replace("/opt/fedpers/bin", str(programs))
        text = text.replace("/usr/sbin/nginx", str(programs / "nginx"))
        path.write_text(re.sub("User=.*", f"User={os.getuid()}", text))
        name = path.name.replace("@.", "@clinic-7.")
        paths.append(path.rename(path.with_name(name)))
    found = subprocess.run(
        ["systemd-analyze", "verify", *map(str, paths)], capture_output=True, text=True, timeout=60
    )
    said = [line for line in found.stderr.splitlines() if "fedpers" in line]
    assert said == [] and found.returncode == 0, found.stderr
    for path in paths:
        if path.suffix == ".service":
            rated = subprocess.run(
                ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(path)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert rated.returncode == 0, rated.stdout[-2000:] + rated.stderr
