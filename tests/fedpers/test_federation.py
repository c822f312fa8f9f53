"""The federation's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedpers.errors import ConfigError
from fedpers.federation import Federation, read_federation


def public() -> tuple[str, bytes]:
    """A key as OpenSSH writes it, and as Flower sends it."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    ssh = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return ssh, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def write(**given: Any) -> Federation:
        (tmp_path / "federation.yaml").write_text(yaml.safe_dump(given))
        return read_federation(tmp_path / "federation.yaml")

    return write


def test_a_key_names_its_device_and_whom_it_may_speak_for(read: Any, tmp_path: Path) -> None:
    (one, pem), (two, other) = public(), public()
    (tmp_path / "two.pub").write_text(f"{two} somebody@somewhere\n")
    devices = {"clinic-7": {"key": one}, "hub": {"key": "two.pub", "clients": ["a", "b c/ü"]}}
    found = read(devices=devices, listen="0.0.0.0:443", megabytes=8)
    assert found.listen == "0.0.0.0:443" and found.megabytes == 8 and found.requests == 100
    assert found.devices["clinic-7"].clients == ("clinic-7",)
    assert found.devices["hub"].clients == ("a", "b c/ü")
    assert found.name_of(pem) == "clinic-7" and found.name_of(other) == "hub"
    # Another key, and what is none.
    for key in (public()[1], b"", b"\0", pem[:-30], b"-----BEGIN PUBLIC KEY-----"):
        assert found.name_of(key) is None
    assert (
        found.name_of(pem.replace(b"\n", b"\r\n")) == "clinic-7"
    )  # as it is, not as it is written


KEY, SAME = public()[0], public()[0]
EDWARDS = ed25519.Ed25519PrivateKey.generate().public_key()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no devices": ({"listen": "0.0.0.0:1"}, "a mapping with `devices`"),
    "unknown": ({"devices": {}, "liste": "x"}, "federation: got 'liste', takes keys of"),
    "no key": ({"devices": {"a": {}}}, "takes `key`"),
    "another key of it": ({"devices": {"a": {"key": KEY, "x": 1}}}, "takes `key`"),
    "a file that is not there": ({"devices": {"a": {"key": "a.pub"}}}, "No such file"),
    "no curve": (
        {
            "devices": {
                "a": {"key": EDWARDS.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()}
            }
        },
        "a public key, or a file",
    ),
    "garbage": ({"devices": {"a": {"key": "ecdsa-sha2-nistp384 AAAA"}}}, "an ECDSA public key"),
    "a name with a quote": ({"devices": {'a"; allow all; #': {"key": KEY}}}, "names of letters"),
    "a name with a newline": ({"devices": {"a\nb": {"key": KEY}}}, "names of letters"),
    "a number for a name": ({"devices": {7: {"key": KEY}}}, "names of letters"),
    "clients that are no texts": ({"devices": {"a": {"key": KEY, "clients": [7]}}}, "are texts"),
    "no clients": ({"devices": {"a": {"key": KEY, "clients": []}}}, "are texts"),
    "one key twice": ({"devices": {"a": {"key": KEY}, "b": {"key": KEY}}}, "a key of its own"),
    "one client twice": (
        {"devices": {"a": {"key": KEY}, "b": {"key": SAME, "clients": ["a"]}}},
        "a client of its own, which a has already",
    ),
    "names of two cases": (
        {"devices": {"Clinic": {"key": KEY}, "clinic": {"key": SAME, "clients": ["x"]}}},
        "a name of its own, which Clinic has already",
    ),
    "a path that says more": ({"devices": {}, "revoked": "/x; allow all"}, "letters, digits"),
    "a path with a variable": ({"devices": {}, "revoked": "/etc/$host"}, "letters, digits"),
    "an address that says more": ({"devices": {}, "superlink": "127.0.0.1:1;"}, "HOST:PORT"),
    "no port": ({"devices": {}, "listen": "0.0.0.0:70000"}, "HOST:PORT"),
    "no number": ({"devices": {}, "megabytes": "64m"}, "an integer in 1..1000000"),
    "yes": ({"devices": {}, "requests": True}, "an integer in 1..1000000"),
    "a list": ({"devices": {}, "listen": ["a"]}, "a text or a number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line(what: str, read: Any) -> None:
    given, said = WRONG[what]
    with pytest.raises(ConfigError) as caught:
        read(**given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_federation(tmp_path / "none.yaml")
    (tmp_path / "twice.yaml").write_text("devices: {a: {key: x}, a: {key: y}}")
    with pytest.raises(ConfigError, match="a comes twice"):  # a line that would hide the other
        read_federation(tmp_path / "twice.yaml")
    for text in ("{", "!!python/object:os.system {}", "- a", "7", ""):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError):
            read_federation(tmp_path / "x.yaml")
