"""A channel of one's own, by its dotted path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpers.channels.base import Needs
from fedpers.channels.build import check_channel, node_channel
from fedpers.channels.named import channel_named
from fedpers.channels.plain import Plain, PlainNode
from fedpers.config import load_config
from fedpers.errors import ConfigError
from fedpers.privacy.noise import known

OWN = """
from fedpers.channels.plain import Plain, PlainNode


class Half(PlainNode):
    pass


class Whole(Plain):
    node = Half
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_channel.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_channel:Whole"
    sys.modules.pop("own_channel", None)


def check(*overrides: str) -> None:
    check_channel(load_config(None, list(overrides)), Needs(), "examples")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["channel=nosuch"], "channel: got 'nosuch', takes one of plain, or a dotted path"),
        (["channel=json:loads"], "channel: got 'json:loads', takes a subclass of fedpers.channels"),
        (["channel=nowhere:X"], "channel: got 'nowhere:X', takes a path that can be imported"),
    ],
)
def test_what_is_no_channel_is_one_line(settings: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(*settings)
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)


def test_encryption_is_a_channel_already(own: str) -> None:
    check(f"channel={own}")
    with pytest.raises(ConfigError, match=r"^channel: got .* takes plain with encryption\.enabled"):
        check(f"channel={own}", "encryption.enabled=true")


def test_both_halves_are_taken_and_noise_goes_around_them(own: str) -> None:
    assert channel_named("plain") is Plain and channel_named(own).node is not PlainNode
    half = channel_named(own).node
    for noise in (False, True):
        by_client = ["privacy.enabled=true", "privacy.unit=client"] if noise else []
        config = load_config(None, [f"channel={own}", *by_client])
        found = node_channel(config, "run", 4, known(0))
        assert type(found.inner if noise else found) is half  # type: ignore[attr-defined]
