"""Whole runs with masked sums, beside the same without: what the server has, and what it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.node.store import ClientStore
from fedpers.channels.identity.home import IDENTITY, REGISTRY
from fedpers.channels.masked.client import MaskedClient
from fedpers.channels.masked.masks import Words
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Terms
from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from simulations.backends import checks
from strategies.base import find_strategy

ON = ["encryption.enabled=true", "encryption.scheme=masked"]
LEARN = ["training.epochs=4", "model.pretrain.task=clusters", "model.pretrain.epochs=3"]
LEARN += ["model.standardise=true"]


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[int, str], Words]]:
    """What each client would have sent without masks, by tag and client."""
    seen: dict[tuple[int, str], Words] = {}
    mask = MaskedClient.masked

    def noted(self: MaskedClient, terms: Terms, own: bytes, words: Words) -> bytes:
        seen[terms.tag, self.me] = words.copy()
        return mask(self, terms, own, words)

    monkeypatch.setattr(MaskedClient, "masked", noted)
    yield seen


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Words]]:
    """What the server had in the end, by tag."""
    seen: dict[int, Words] = {}
    unmask = MaskedServer.unmask

    def noted(self: MaskedServer) -> Words:
        seen[self.session.terms.tag] = total = unmask(self)
        return total

    monkeypatch.setattr(MaskedServer, "unmask", noted)
    yield seen


@pytest.mark.parametrize("name", ["fedavg", "fedper", "ditto", "perada"])
def test_masks_change_no_result(run: Any, name: str) -> None:
    plain, masked = (run(name, *LEARN, "rounds=3", *more) for more in ([], ON))
    assert masked.failures() == {}
    assert [line["answered"] for line in masked.rounds] == [6, 6, 6]
    assert masked.report["encryption"]["scheme"] == "masked"
    accuracy = [one.report["accuracy"]["personal"]["mean"] for one in (plain, masked)]
    assert accuracy[0] > 0.6 and accuracy[1] == pytest.approx(accuracy[0], abs=1 / 120)
    # The round's mean loss is in the log all the same; no client's is anywhere.
    losses = [[line["loss"] for line in one.rounds] for one in (plain, masked)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
    assert losses[1][0] == pytest.approx(losses[0][0], abs=1e-5)


def test_the_sum_is_that_of_the_vectors_whoever_hosts_whom(
    run: Any, vectors: dict[tuple[int, str], Words], sums: dict[int, Words]
) -> None:
    found = []
    for nodes in (1, 2, 6):
        vectors.clear()
        sums.clear()
        run("fedavg", *ON, f"simulation.nodes={nodes}")
        for tag, total in sums.items():
            own = [words for (of, _), words in vectors.items() if of == tag]
            assert len(own) == 6
            assert np.array_equal(total, np.sum(own, axis=0, dtype=np.uint64))
        found.append(dict(sums))
    for other in found[1:]:  # keys and masks are others each time, and the sum is not
        assert other.keys() == found[0].keys()
        assert all(np.array_equal(other[tag], total) for tag, total in found[0].items())


@pytest.mark.parametrize(
    ("name", "overrides", "line"),
    [
        ("pfedsim", [], r"strategy\.name: .*compares every client's head; set encryption\.scheme"),
        (
            "fedavg",
            ["strategy.combine=median"],
            r"strategy\.combine: .* mean with masked sums",
        ),
        ("dfedalt", [], r"strategy\.name: .*this one has mixtures for single clients"),
        ("ifca", [], r"strategy\.name: .*a method whose server needs sums alone"),
        ("fedavg", ["strategy.combine=krum"], r"strategy\.combine: .* mean with masked sums"),
        (
            "fedavg",
            ["encryption.keys=/of/devices"],
            r"encryption\.keys: got '/of/devices', takes null with masked sums in a simulation",
        ),
        ("fedavg", ["encryption.rotate_at=2"], r"encryption\.rotate_at: .* no common key"),
        ("fedavg", ["encryption.masks.minimum=7"], r"encryption\.masks\.minimum: got 7, .* of 7 "),
        (
            "fedavg",
            ["strategy.fraction=0.2"],
            r"masks\.minimum: .*strategy\.min_clients",
        ),
        ("fedavg", ["encryption.masks.corrupt=0.9"], r"dropouts: .* corrupt \+ 2 dropouts < 1"),
    ],
)
def test_what_sums_cannot_have_is_refused_before_the_run(
    check: Callable[..., None], name: str, overrides: list[str], line: str
) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        check(name, *ON, *overrides)
    assert "\n" not in str(refused.value)


@pytest.fixture
def check(digits: list[str]) -> Callable[..., None]:
    """``check("ditto", "rounds=3")``: what is looked at before a run."""

    def check(name: str, *overrides: str) -> None:
        checks.check(load_config(None, [*digits, f"strategy.name={name}", *overrides]))

    return check


def test_keys_are_each_clients_own_and_pinned(run: Any) -> None:
    files = run("fedavg", *ON)
    stores = files.folder / "state"
    paths = [ClientStore(stores, str(client)).folder / IDENTITY for client in range(6)]
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
    assert len({path.read_text() for path in paths}) == 6
    public = (stores / REGISTRY).read_text()
    for path in paths:
        secrets = json.loads(path.read_text())
        assert not any(secrets[name] in public for name in ("agreement", "signing", "chain"))


@pytest.mark.parametrize(
    ("name", "overrides", "taken"),
    [
        ("fedavg", [], "masked"),
        ("perada", [], "masked"),
        ("ditto", ["privacy.enabled=true"], "masked"),
        ("pfedsim", [], "auto"),  # BFV or CKKS, as it needs
        ("dfedalt", [], "auto"),
        ("fedavg", ["encryption.rotate_at=2"], "auto"),
        ("fedavg", ["privacy.enabled=true", "privacy.unit=client"], "auto"),
        ("fedavg", ["encryption.masks.minimum=7"], "auto"),  # cohorts are too small
        ("fedavg", ["encryption.scheme=bfv"], "bfv"),
    ],
)
def test_auto_takes_masked_sums_where_sums_are_all_that_the_server_needs(
    digits: list[str], name: str, overrides: list[str], taken: str
) -> None:
    settings = ["encryption.enabled=true", "strategy.name=" + name, *overrides]
    config = load_config(None, [*digits, *settings])
    find_strategy(config).check(config, load_data(config))
    assert config.encryption.scheme == taken


def test_auto_keeps_to_a_key_that_is_given(digits: list[str], tmp_path: Path) -> None:
    for held, taken in [("server.context", "auto"), (REGISTRY, "masked")]:
        folder = tmp_path / taken
        folder.mkdir()
        (folder / held).touch()
        settings = ["encryption.enabled=true", "strategy.name=fedavg", f"encryption.keys={folder}"]
        config = load_config(None, [*digits, *settings])
        find_strategy(config).check(config, load_data(config))
        assert config.encryption.scheme == taken
