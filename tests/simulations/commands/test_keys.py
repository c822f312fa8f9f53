"""``fedpers keys``, and what is refused of keys before a run."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedpers.channels.identity.registry import Registry
from fedpers.channels.sealed import new_keys
from fedpers.channels.sealed.guard import unframe
from fedpers.channels.sealed.keys import MAGIC
from fedpers.config import load_config
from fedpers.errors import ConfigError
from simulations.backends.checks import check
from simulations.commands.cli import app

ON = "encryption.enabled=true"


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def test_made_and_shown(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    made = keys("new", "--out", str(folder), "--clients", "20")
    assert made.exit_code == 0
    assert stat.S_IMODE((folder / "client.key").stat().st_mode) == 0o600
    secret = unframe(MAGIC, (folder / "client.key").read_bytes())[1][0]
    for name, holds in (("client.key", "the secret key"), ("server.context", "no secret")):
        shown = keys("show", str(folder / name)).stdout
        lines = dict(line.split(maxsplit=1) for line in shown.splitlines())
        assert list(lines) == ["id", "scheme", "parameters", "security", "made", "holds"]
        assert lines["scheme"] == "bfv" and lines["holds"] == holds
        assert lines["parameters"] == "degree 4096, modulus 56 bits, room for 20 clients"
        assert lines["security"] == "256 bits" and lines["id"] in made.stdout
        assert secret[100:110].hex() not in shown and len(shown) < 400
    assert CliRunner().invoke(app, ["keys"]).exit_code == 2


def test_rows_are_of_another_set(tmp_path: Path) -> None:
    assert "ckks-rows" in keys("new", "--out", str(tmp_path / "k"), "--rows").stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["new", "--out", "K", "--clients", "0"], "error: cohort: got 0, takes 1 to 65536 clients"),
        (["new", "--out", "K", "--scheme", "bfv", "--rows"], "error: encryption.scheme: got 'bfv'"),
        (["new", "--out", "FILE"], "error: key folder: got"),
        (["new", "--out", "THERE"], "error: key file: got"),
        (["show", "K"], "error: K: got 'No such file or directory', takes a key file"),
        (["show", "FILE"], "error: FILE: got"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("no key")
    new_keys(Path("THERE"), "bfv", 2)
    result = keys(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1
    assert not Path("K").exists()


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert keys("new", "--out", str(tmp_path)).exit_code == 0
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def checked(folder: Path, *overrides: str) -> None:
    check(load_config(None, [ON, f"encryption.keys={folder}", "data.clients=6", *overrides]))


def test_keys_that_fit_pass(tmp_path: Path) -> None:
    new_keys(tmp_path / "sums", "auto", 6)
    new_keys(tmp_path / "rows", "auto", 6, rows=True)
    checked(tmp_path / "sums", "strategy.name=fedavg")
    checked(tmp_path / "rows", "strategy.name=pfedsim")
    checked(tmp_path / "rows", "strategy.name=fedavg", "encryption.scheme=ckks")
    checked(tmp_path / "none", "strategy.name=local")  # which sends nothing


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    for name in ("one", "two"):
        new_keys(tmp_path / name, "auto", 5)
    (tmp_path / "open").mkdir()
    for file in (tmp_path / "one").iterdir():
        (tmp_path / "open" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "open" / "client.key").chmod(0o644)
    (tmp_path / "half").mkdir()
    (tmp_path / "one" / "server.context").rename(tmp_path / "half" / "server.context")
    (tmp_path / "two" / "server.context").rename(tmp_path / "one" / "server.context")
    new_keys(tmp_path / "room", "auto", 5)
    wrong = {
        "none": "takes a folder with client.key; fedpers keys new --out DIR --clients 6",
        "half": "takes a folder with client.key",
        "two": "takes a folder with server.context",
        "one": "takes two files of one key",
        "open": "takes mode 0600; chmod 600",
        "room": "got 'room for 5', takes a key with room for 6 clients",
    }
    for name, reason in wrong.items():
        with pytest.raises(ConfigError) as caught:
            checked(tmp_path / name)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"takes ckks-rows for this method; .* --rows"):
        checked(tmp_path / "room", "strategy.name=pfedsim", "data.clients=5")
    with pytest.raises(ConfigError, match="takes ckks where rows are mixed"):
        check(load_config(None, [ON, "strategy.name=pfedsim", "encryption.scheme=bfv"]))
    with pytest.raises(ConfigError, match="takes auto or bfv, as the key in"):
        checked(tmp_path / "room", "encryption.scheme=ckks", "data.clients=5")


def test_identities_are_made_on_devices_and_put_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = keys("identity", name, "--out", str(tmp_path / name))
        assert made.exit_code == 0 and f"who signs as {name}" in made.stdout
        assert stat.S_IMODE((tmp_path / name / "identity.json").stat().st_mode) == 0o600
    again = keys("identity", "a", "--out", str(tmp_path / "a"))
    assert again.exit_code == 2 and "a second key is another client" in again.stderr
    publics = [str(tmp_path / name / "public.json") for name in ("a", "b")]
    out = tmp_path / "registry.json"
    put = keys("registry", *publics, "--out", str(out))
    assert put.exit_code == 0 and "2 clients" in put.stdout
    assert list(Registry.from_json(out.read_text()).publics) == ["a", "b"]
    own = (tmp_path / "a" / "identity.json").read_text()
    assert json.loads(own)["signing"] not in out.read_text() + put.stdout
    for odd in ("{}", "[]", "x", own):
        (tmp_path / "odd.json").write_text(odd)
        refused = keys("registry", str(tmp_path / "odd.json"), "--out", str(tmp_path / "no"))
        assert refused.exit_code == 2 and refused.stderr.startswith("error: ")
    twice = keys("registry", publics[0], publics[0], "--out", str(tmp_path / "no"))
    assert twice.exit_code == 2 and not (tmp_path / "no").exists()
