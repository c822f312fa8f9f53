"""Noise in masked sums: fields that go below 0, and servers that say less of it than is due."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpers.channels.build import least_noise, node_channel
from fedpers.channels.identity.encoding import Refused, table
from fedpers.channels.identity.home import REGISTRY, deal_identities
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.client import MaskedClient
from fedpers.channels.masked.envelope import Envelope
from fedpers.channels.masked.messages import Dropped, Upload
from fedpers.channels.masked.node import enrol
from fedpers.channels.masked.noise import NoisedField, noised_values, shares_of
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.channels.masked.session import Terms
from fedpers.channels.masked.vector import from_json, noised_layout_of, to_json
from fedpers.channels.node import Leaving, NodeChannel
from fedpers.config import Config, load_config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import known, secret, sources
from fedpers.privacy.shares import Shares

NAMES = tuple("abcdef")
PRIVATE = ["privacy.enabled=true", "privacy.unit=client", "privacy.max_grad_norm=0.5"]
ON = ["encryption.enabled=true", "encryption.scheme=masked", "rounds=3", *PRIVATE]
SENT = Parts({"body": Part.of({"w": torch.ones(40)}), "head": Part.of({"b": torch.zeros(2)})})
CLOSED = bytes(32)  # what another client's upload is bound to
NOBODY: Any = None  # a device's keys are its owner's


# -- fields ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(1, 9), st.integers(9, 24), st.floats(0.1, 50), st.integers(1, 40), st.integers(0)
)
def test_sums_below_and_above_zero_are_exact(
    clients: int, bits: int, sigma: float, length: int, seed: int
) -> None:
    shares = Shares(length, 1.0, bits, sigma, max(1, clients // 2))
    layout = Layout([NoisedField.of("part body", length, shares)], clients)
    rng, reach = np.random.default_rng(seed), shares.reach(clients) // clients
    own = rng.integers(-reach, reach, (clients, length), endpoint=True)
    words = [layout.quantised({"part body": row}, 1.0, secret("x")) for row in own]
    total = layout.unpacked(layout.packed(np.sum(words, axis=0, dtype=np.uint64)))
    found = layout.sums(total, clients)
    assert np.array_equal(layout.integers(total, layout.fields[0]), own.sum(axis=0))
    assert np.array_equal(found["part body"], shares.changes(own.sum(axis=0)))
    assert float(found["weight"][0]) == clients


def test_the_sum_has_room_for_ten_standard_deviations_and_garbage_has_not() -> None:
    shares = Shares(1000, 1.0, 12, 2.0, 10)
    layout = Layout([NoisedField.of("part body", 1000, shares)], 20)
    (field, _) = layout.fields
    deviation = (20 * shares.variance) ** 0.5
    assert 2 ** (layout.width(field) - 1) > 20 * shares.bound**0.5 + 10 * deviation
    garbage = np.frombuffer(secret("x").bits(8 * layout.words), np.uint64).copy()
    garbage[-1] = 0  # the weight
    with pytest.raises(Dropped, match="beyond that of 20 clients, takes one in range"):
        layout.sums(garbage, 20)


def test_what_is_no_integer_or_has_no_room_is_refused() -> None:
    shares = Shares(3, 1.0, 16, 1.0, 1)
    layout = Layout([NoisedField.of("part body", 3, shares)], 2)
    for wrong in (np.zeros(3), np.zeros(4, np.int64)):
        with pytest.raises(ClientError, match=r"^part body: got .* takes integers \(3,\)"):
            layout.quantised({"part body": wrong}, 1.0, secret("x"))
    wide = NoisedField.of("part body", 3, Shares(3, 1.0, 32, 1e3, 1))
    with pytest.raises(ConfigError, match=r"^encryption\.masks\.bits: got 32, takes fewer"):
        Layout([wide], 2**30).width(wide)


def test_a_layout_is_read_as_it_was_written_and_the_noise_is_signed() -> None:
    layout = noised_layout_of(SENT.layouts, Shares(42, 0.5, 16, 1.5, 3), 6)
    assert from_json(to_json(layout)).fields == layout.fields
    less = noised_layout_of(SENT.layouts, Shares(42, 0.5, 16, 1.4, 3), 6)
    assert less.signed != layout.signed
    with pytest.raises(Refused, match="layout: cannot be read"):
        from_json([6, [["part body", 42, -0.5, 0.5, 16, True, 42]]])


def test_changes_are_in_the_order_of_the_fields_whatever_that_of_the_parts() -> None:
    shares = Shares(42, 1e3, 32, 1e-4, 1)
    layout = noised_layout_of(SENT.layouts, shares, 2)
    update = Parts({"head": Part.of({"b": torch.tensor([3.0, 4.0])}), "body": SENT["body"]})
    found = noised_values(layout, shares, update, SENT, known(0)("x"))
    assert {name: len(row) for name, row in found.items()} == {"part body": 40, "part head": 2}
    assert shares.changes(found["part head"]) == pytest.approx([3.0, 4.0], abs=0.6)
    assert np.abs(shares.changes(found["part body"])).max() < 0.6
    with pytest.raises(ClientError, match=r"^upload: got \['body'\], takes \['body', 'head'\]"):
        noised_values(layout, shares, Parts({"body": SENT["body"]}), SENT, known(0)("x"))


# -- servers that lie ------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in NAMES}
    deal_identities(enrol, tmp_path / "server", found)
    return found


CONFIG = load_config(None, ON)
SIGMA = least_noise(CONFIG)


def node_of(folders: Mapping[str, Path], config: Config = CONFIG) -> NodeChannel:
    return node_channel(config, "run", 6, secret, keys=folders["a"])


def told(
    folders: Mapping[str, Path],
    layout: Layout,
    sigma: float | None,
    tag: int = 1,
) -> dict[str, Any]:
    registry = Registry.from_json((folders["a"] / REGISTRY).read_text())
    terms = Terms("run", tag, tag, NAMES, layout).to_bytes().hex()
    said = {"terms": terms, "layout": to_json(layout), "weights": "equal", "masks": True}
    noise = {} if sigma is None else {"noise": {"sigma": sigma, "honest": 3}}
    return {"channel": {**said, **noise, "registry": registry.to_json()}}


def leave(folders: Mapping[str, Path], body: dict[str, Any]) -> Any:
    report = {"examples": 1, "loss": 0.5}
    return node_of(folders).leave(NOBODY, Leaving("a", 1, SENT, report, body, SENT))


def layout_for(sigma: float, clients: int = 6, config: Config = CONFIG) -> Layout:
    return noised_layout_of(SENT.layouts, shares_of(config, sigma, clients, 42), clients)


def test_an_honest_server_is_answered_and_told_no_loss(folders: dict[str, Path]) -> None:
    assert leave(folders, told(folders, layout_for(SIGMA), SIGMA)).nbytes > 0
    said = node_of(folders).disclosed({"examples": 1, "loss": 0.5})
    assert said == {"examples": 1, "loss": None}


def test_shares_smaller_than_a_policy_was_told_of_get_nothing(folders: dict[str, Path]) -> None:
    body = told(folders, layout_for(SIGMA), SIGMA)
    body["channel"]["noise"]["honest"] = 2
    with pytest.raises(Refused, match="got shares of 2 clients, takes of 3 or more"):
        leave(folders, body)


def test_noise_is_nobodys_to_know_unless_tests_ask(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients of one seed and one round draw other noise each time."""
    found: list[np.ndarray] = []

    def noted(self: MaskedClient, terms: Terms, own: bytes, words: np.ndarray) -> bytes:
        found.append(words.copy())
        return b""

    monkeypatch.setattr(MaskedClient, "masked", noted)
    tested = load_config(None, [*ON, "privacy.deterministic_for_tests=true"])
    tag = 0
    for config in (CONFIG, tested):
        found.clear()
        for _ in range(2):
            tag += 1
            drawn = sources(config.privacy.deterministic_for_tests, config.seed)
            node = node_channel(config, "run", 6, drawn, keys=folders["a"])
            body = told(folders, layout_for(SIGMA), SIGMA, tag)
            node.leave(NOBODY, Leaving("a", 1, SENT, {}, body, SENT))
        first, again = (words[:-1] for words in found)
        assert np.array_equal(first, again) == (config is tested)


@pytest.mark.parametrize(
    ("layout", "sigma", "line"),
    [
        (layout_for(SIGMA), None, "^noise: got none, takes a multiplier"),
        (layout_for(SIGMA / 2), SIGMA / 2, r"^noise: got [\d.]+, takes [\d.]+ or more"),
        (layout_for(SIGMA / 2), SIGMA, "^noise of part body: got Shares"),
        # As if all were honest, or twice as many clients had been asked: smaller shares.
        (
            noised_layout_of(SENT.layouts, Shares(42, 0.5, 16, SIGMA, 6), 6),
            SIGMA,
            "honest=6.*takes.*honest=3",
        ),
        (layout_for(SIGMA, clients=12), SIGMA, "honest=6.*takes.*honest=3"),
        # A larger step, so that what is rounded away is less than what is added.
        (
            layout_for(SIGMA, config=load_config(None, [*ON, "encryption.masks.bits=12"])),
            SIGMA,
            "bits=12.*takes.*bits=16",
        ),
        (
            layout_for(SIGMA, config=load_config(None, [*ON, "privacy.max_grad_norm=0.1"])),
            SIGMA,
            "norm=0.1,.*takes.*norm=0.5,",
        ),
        # A field that no noise covers.
        (
            Layout([*layout_for(SIGMA).fields[:2], Field("loss", 1, (-9.0, 9.0), 16)], 6),
            SIGMA,
            "^noise of ",
        ),
        (
            Layout([Field("part body", 40, (-8.0, 8.0), 16), *layout_for(SIGMA).fields[1:2]], 6),
            SIGMA,
            "^noise of part body: got none",
        ),
    ],
    ids=[
        *("none", "less", "less than said", "all honest", "more asked", "coarse"),
        *("clipped to less", "loss", "plain"),
    ],
)
def test_a_server_that_says_less_noise_than_is_due_gets_nothing(
    folders: dict[str, Path], layout: Layout, sigma: float | None, line: str
) -> None:
    with pytest.raises(ClientError, match=line) as refused:
        leave(folders, told(folders, layout, sigma))
    assert "\n" not in str(refused.value)


def test_a_set_in_which_the_noise_is_not_whole_is_not_signed(folders: dict[str, Path]) -> None:
    """Of 6, 3 have to be honest, and 2 more may work with the server."""
    body = told(folders, layout_for(SIGMA), SIGMA)
    node = node_of(folders)
    sent = node.leave(NOBODY, Leaving("a", 1, SENT, {}, body, SENT))
    assert isinstance(sent, Envelope)
    own = Upload.from_bytes(sent.data).commitments[: len(CLOSED)]

    def signed(names: str) -> tuple[Any, Any]:
        survivors = table({name: own if name == "a" else CLOSED for name in names}).hex()
        asked = {"clients": ["a"], "channel": body["channel"], "survivors": survivors}
        rows, said = node.kinds["sign"](NOBODY, [], asked)
        return rows, said["failures"].get("a")

    rows, failure = signed("abcd")
    assert rows == [] and str(failure) == (
        "noise: got 4 survivors, takes 5 or more, whose shares make it whole"
    )
    rows, failure = signed("abcde")
    assert failure is None and len(rows) == 1
