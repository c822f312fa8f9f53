"""A key that is replaced while a run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedpers.channels.sealed import new_keys, show
from fedpers.errors import FedpersError


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a key and the one after it."""
    new_keys(tmp_path / "keys", "bfv", 8)
    new_keys(tmp_path / "later", "bfv", 8)
    shutil.copy2(tmp_path / "later" / "client.key", tmp_path / "keys" / "next.key")
    shutil.copy2(tmp_path / "later" / "server.context", tmp_path / "keys" / "next.context")
    return tmp_path / "keys"


@pytest.mark.parametrize("name", ["fedavg", "perada"])
def test_a_rotated_key_changes_no_result(
    run: Any, keys: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["rounds=3", "encryption.enabled=true", f"encryption.keys={keys}"]
    if name == "perada":
        settings.append("strategy.params.kd_steps=5")
    stayed = run(name, *settings)
    capsys.readouterr()
    rotated = run(name, *settings, "encryption.rotate_at=2")
    later = show(keys / "next.key")["key_id"]
    assert f"encryption: key {later} from round 2 on" in capsys.readouterr().out
    assert rotated.report["encryption"]["key_id"] == later
    assert stayed.report["encryption"]["key_id"] == show(keys / "client.key")["key_id"]
    assert [line["answered"] for line in rotated.rounds] == [6, 6, 6]
    assert rotated.report["accuracy"] == stayed.report["accuracy"]


def test_what_cannot_rotate_is_one_line(run: Any, keys: Path) -> None:
    with pytest.raises(FedpersError, match=r"^encryption\.rotate_at: got 2, takes null with a key"):
        run("fedavg", "encryption.enabled=true", "encryption.rotate_at=2")
    (keys / "next.context").unlink()
    with pytest.raises(FedpersError, match=r"next\.context"):
        run(
            "fedavg", "encryption.enabled=true", f"encryption.keys={keys}", "encryption.rotate_at=2"
        )
