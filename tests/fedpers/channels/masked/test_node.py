"""Keys of a device's owner, and registries that a server shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.home import IDENTITY, REGISTRY, deal_identities
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.node import SERVED, MaskedNode, described, enrol
from fedpers.channels.masked.session import Terms
from fedpers.channels.masked.vector import layout_of, to_json
from fedpers.channels.node import Leaving
from fedpers.channels.settings import Encryption
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import secret

NAMES = ("one", "three", "two")
UPDATE = Parts({"body": Part.of({"w": torch.zeros(5)})})
REPORT = {"examples": 7, "loss": 0.5}
NOBODY: Any = None  # a device's keys are its owner's


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in NAMES}
    deal_identities(enrol, tmp_path / "server", found)
    return found


def said(registry: Registry, tag: int = 1) -> dict[str, Any]:
    layout = layout_of(UPDATE.layouts, (), Encryption(), 3)
    terms = Terms("run", 1, tag, NAMES, layout).to_bytes().hex()
    shown = {"terms": terms, "layout": to_json(layout), "weights": "examples"}
    return {"channel": {**shown, "registry": registry.to_json()}}


def leave(folder: Path, client: str, body: dict[str, Any]) -> Any:
    node = MaskedNode(Config(), secret, folder)
    return node.leave(NOBODY, Leaving(client, 1, UPDATE, REPORT, body))


def test_keys_are_dealt_one_a_client_and_say_whose_they_are(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    assert sorted(path.name for path in (tmp_path / "server").iterdir()) == [REGISTRY]
    for name, folder in folders.items():
        assert (folder / IDENTITY).stat().st_mode & 0o077 == 0
        assert described(folder) == f"identity: client {name}, one of 3 in the registry"
    with pytest.raises(ConfigError, match=r"^keys: got None, takes the folder with identity\.json"):
        described(None)
    (folders["one"] / REGISTRY).unlink()
    with pytest.raises(ConfigError, match=r"a folder with registry\.json"):
        described(folders["one"])


def test_a_registry_with_another_key_is_refused_by_name(folders: dict[str, Path]) -> None:
    pinned = Registry.from_json((folders["one"] / REGISTRY).read_text())
    assert leave(folders["one"], "one", said(pinned)).nbytes > 0
    for other in ("one", "two"):
        swapped = {**pinned.publics, other: Identity.new(other).public}
        with pytest.raises(Refused, match=f"^{other}: its identity key has changed"):
            leave(folders["one"], "one", said(Registry(swapped.values()), tag=2))
    more = Registry([*pinned.publics.values(), Identity.new("four").public])
    with pytest.raises(Refused, match=r"^four: got an unknown client"):
        leave(folders["one"], "one", said(more, tag=2))
    fewer = Registry([pinned["one"], pinned["two"]])
    with pytest.raises(Refused, match="got one without three, takes the one pinned"):
        leave(folders["one"], "one", said(fewer, tag=2))


def test_a_tag_is_served_once_whatever_restarts(folders: dict[str, Path]) -> None:
    pinned = Registry.from_json((folders["two"] / REGISTRY).read_text())
    leave(folders["two"], "two", said(pinned))
    with pytest.raises(Refused, match=r"^tag: got 1, takes one above 1"):
        leave(folders["two"], "two", said(pinned))
    assert leave(folders["two"], "two", said(pinned, tag=5)).nbytes > 0
    (folders["two"] / SERVED).unlink()
    with pytest.raises(Refused, match="memory: it is gone"):
        leave(folders["two"], "two", said(pinned, tag=6))


def test_another_client_s_keys_are_refused(folders: dict[str, Path]) -> None:
    pinned = Registry.from_json((folders["two"] / REGISTRY).read_text())
    with pytest.raises(ConfigError, match=r"got .that of two., takes the identity of client one"):
        leave(folders["two"], "one", said(pinned))


@pytest.mark.parametrize(
    "wrong",
    [
        {"terms": "no digits"},
        {"terms": "00"},
        {"layout": 3},
        {"layout": [3, [["part body", 5]]]},
        {"layout": [3, [["part other", 5, -8.0, 8.0, 16, True]]]},
        {"layout": [3, [["part body", 6, -8.0, 8.0, 16, True]]]},
        {"registry": "[]"},
        {"registry": "nothing"},
    ],
)
def test_terms_that_cannot_be_are_refused(folders: dict[str, Path], wrong: dict[str, Any]) -> None:
    body = said(Registry.from_json((folders["one"] / REGISTRY).read_text()))
    body["channel"] |= wrong
    with pytest.raises((ClientError, ConfigError)) as refused:
        leave(folders["one"], "one", body)
    assert "\n" not in str(refused.value)
