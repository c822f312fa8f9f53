"""Rows of a ledger: of which mechanism they are, those of earlier versions, those of none."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from spherical import Spherical

from fedpers.errors import ClientError, ConfigError
from fedpers.privacy import Budget, BudgetSpent, Gaussian, Ledger, Release, mechanism_named

NAME = "0123456789abcdef0123456789abcdef"
# As they were written before rows had kinds.
OLD = f'{{"ledger": "{NAME}", "charges": 2, "releases": [[2.0, 0.1, 3], [9.0, 1.0, 4]]}}'
OLD_RECEIPT = f'{{"ledger": "{NAME}", "charges": 2}}'
# What the version that wrote them said they had spent at delta 1e-5.
OLD_EPSILON = "0x1.dc8230480a0a2p-1"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    for folder, text in (("ledgers", OLD), ("accounts", OLD_RECEIPT)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(text)
    return tmp_path


def test_an_old_ledger_counts_as_it_did(kept: Path) -> None:
    ledger = Ledger.named(kept / "ledgers", "a")
    assert ledger.releases == [Release(Gaussian(2.0, 0.1), 3), Release(Gaussian(9.0, 1.0), 4)]
    assert ledger.epsilon(1e-5).hex() == OLD_EPSILON
    assert ledger.path.read_text() == OLD  # to be looked at changes nothing
    budget = Budget(ledger, 1.001 * ledger.epsilon(1e-5), 1e-5)
    with pytest.raises(BudgetSpent):
        budget.charge([Release(Gaussian(9.0, 1.0), 1)])
    assert ledger.path.read_text() == OLD


def test_an_old_ledger_is_charged_on_and_its_receipt_still_vouches(kept: Path) -> None:
    Ledger.named(kept / "ledgers", "a").charge([Release(Gaussian(9.0, 1.0), 1)])
    written = json.loads((kept / "ledgers" / "a.json").read_text())
    assert written == {
        "ledger": NAME,
        "charges": 3,
        "releases": [
            {"kind": "gaussian", "sigma": 2.0, "rate": 0.1, "steps": 3},
            {"kind": "gaussian", "sigma": 9.0, "rate": 1.0, "steps": 5},
        ],
    }
    assert json.loads((kept / "accounts" / "a.json").read_text()) == {"ledger": NAME, "charges": 3}
    (kept / "ledgers" / "a.json").write_text(OLD)
    with pytest.raises(ClientError, match=r"is older than what was released \(2 of 3 charges\)"):
        Ledger.named(kept / "ledgers", "a")


def test_old_rows_and_new_ones_add_up(tmp_path: Path) -> None:
    rows = [[2.0, 0.1, 3], {"kind": "gaussian", "sigma": 2.0, "rate": 0.1, "steps": 4}]
    (tmp_path / "a.json").write_text(json.dumps({"releases": rows}))
    assert Ledger(tmp_path / "a.json").releases == [Release(Gaussian(2.0, 0.1), 7)]


def test_a_row_has_all_that_a_mechanism_is(tmp_path: Path) -> None:
    releases = [Release(Spherical(3.0, 0.5, 7), 2), Release(Spherical(3.0, 0.5, 8), 2)]
    Ledger(tmp_path / "a.json").charge([*releases, Release(Gaussian(3.0, 0.5), 2)])
    row, *_ = json.loads((tmp_path / "a.json").read_text())["releases"]
    assert row == {"kind": "spherical", "sigma": 3.0, "rate": 0.5, "scalars": 7, "steps": 2}
    assert Ledger(tmp_path / "a.json").releases == [*releases, Release(Gaussian(3.0, 0.5), 2)]


@pytest.mark.parametrize("kind", ["unheard", "no_such_package:Noise", "os:path", "json:dumps"])
def test_a_kind_that_nothing_knows_is_one_line_and_counts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    row = {"kind": kind, "sigma": 2.0, "rate": 1.0, "steps": 3, "more": 5}
    path.write_text(json.dumps({"releases": [[9.0, 1.0, 4], row]}))
    before = path.read_text()
    with pytest.raises(ClientError) as found:
        Ledger(path)
    line = str(found.value)
    assert line.startswith(f"ledger: {path} holds releases of a mechanism that is not there (")
    assert repr(kind) in line and "\n" not in line
    assert line.endswith("; install the package that brings it: what they cost counts")
    assert path.read_text() == before


def test_a_kind_that_comes_while_a_ledger_is_open_is_refused_before_a_charge(
    tmp_path: Path,
) -> None:
    ledger = Ledger(tmp_path / "a.json")
    ledger.charge([Release(Gaussian(9.0, 1.0), 1)])
    content = json.loads(ledger.path.read_text())
    content["releases"].append({"kind": "unheard", "sigma": 2.0, "rate": 1.0, "steps": 1})
    ledger.path.write_text(json.dumps(content))
    with pytest.raises(ClientError, match="of a mechanism that is not there"):
        ledger.charge([Release(Gaussian(9.0, 1.0), 1)])
    assert json.loads(ledger.path.read_text()) == content


GOOD = {"kind": "gaussian", "sigma": 2.0, "rate": 1.0, "steps": 3}


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "sigma": 0.0},
        {**GOOD, "sigma": float("nan")},
        {**GOOD, "sigma": "2"},
        {**GOOD, "rate": 0.0},
        {**GOOD, "rate": 1.5},
        {**GOOD, "steps": -1},
        {**GOOD, "steps": 2.5},
        {**GOOD, "steps": True},
        {**GOOD, "more": 1},
        {**GOOD, "kind": 5},
        {**GOOD, "kind": None},
        {name: GOOD[name] for name in ("sigma", "rate", "steps")},
        {name: GOOD[name] for name in ("kind", "rate", "steps")},
        {name: GOOD[name] for name in ("kind", "sigma", "rate")},
        [2.0, 1.0, 3, 4],
        "gaussian",
        7,
        None,
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"releases": [row]}))
    with pytest.raises(ClientError, match=r"cannot be read .* restore it from a backup") as found:
        Ledger(path)
    assert "\n" not in str(found.value)


@dataclass(frozen=True)
class Needy(Spherical):
    """It cannot be made of what a run knows."""

    more: float = field(kw_only=True)


def test_a_mechanism_that_needs_more_or_lacks_something_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for kind in (f"{Needy.__module__}:Needy", "fedpers.privacy:Mechanism"):
        with pytest.raises(ConfigError, match=r"made of sigma and rate alone \(.*\)$") as found:
            mechanism_named(kind)
        assert "\n" not in str(found.value)
        path.write_text(json.dumps({"releases": [{**GOOD, "kind": kind}]}))
        with pytest.raises(ClientError, match="holds releases of a mechanism that is not there"):
            Ledger(path)


def test_a_mechanism_by_its_name() -> None:
    assert mechanism_named("gaussian") is Gaussian
    assert mechanism_named("spherical") is mechanism_named("spherical:Spherical") is Spherical
    for name in ("unheard", "os:path", "fedpers.privacy:Ledger"):
        with pytest.raises(ConfigError, match=rf"^privacy\.mechanism: got '{name}', takes "):
            mechanism_named(name)
