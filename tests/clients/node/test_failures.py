"""What a node tells of failures, and what it notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clients.node.answers import answer
from clients.node.device import Device
from clients.node.failures import LARGEST, Reasons, Withheld, withheld
from clients.node.host import ClientHost
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError, DataError
from fedpers.failures import WORDS, meaning
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent

SECRET = ValueError("row 7:\nJane Doe")
DEVICE = Device("7", Path("x.npz"), Path("state"))


@pytest.mark.parametrize(
    ("settings", "device", "leave"),
    [
        ((), None, True),
        ((), DEVICE, False),
        (("privacy.enabled=true",), None, False),
        (("privacy.enabled=true", "privacy.unit=client"), None, False),
        (("encryption.enabled=true",), None, False),
    ],
)
def test_reasons_leave_where_nothing_is_to_be_hidden(
    small: Callable[..., Config], settings: tuple[str, ...], device: Device | None, leave: bool
) -> None:
    found = Reasons.at(small("fedavg", *settings), device, Path("run/state"))
    assert found == Reasons(leave, Path("state") if device else Path("run/state"))


def test_in_full(tmp_path: Path) -> None:
    reasons = Reasons(leave=True, home=tmp_path / "state")
    assert reasons.of("train of client 3", SECRET) == "ValueError: row 7: Jane Doe"
    assert reasons.of_refusal(SECRET) == "ValueError: row 7: Jane Doe"
    assert reasons.of_refusal(DataError("x.npz: torn")) == "x.npz: torn"
    with pytest.raises(Withheld) as caught, withheld("data"):
        raise SECRET
    assert reasons.of_refusal(caught.value) == "ValueError: row 7: Jane Doe"
    assert not reasons.home or not reasons.home.exists()


def test_in_one_word(tmp_path: Path) -> None:
    reasons = Reasons(leave=False, home=tmp_path / "state")
    assert reasons.of("train of client 3", SECRET) == "failed"
    assert reasons.of("train of client 3", DataError("x")) == "failed"
    assert reasons.of("train of client 3", ClientError("x")) == "failed"
    assert reasons.of("train of client 3", BudgetSpent("3.9 of 4 is used")) == "spent"
    log = tmp_path / "state" / "failures.log"
    text = log.read_text()
    assert text.count("train of client 3: ") == 4
    assert "ValueError: row 7:\nJane Doe" in text and "3.9 of 4" in text
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_a_refusal_is_told_in_full_where_it_is_of_the_settings(tmp_path: Path) -> None:
    reasons = Reasons(leave=False, home=tmp_path)
    line = "privacy.delta: got 0.1, takes a number < 0.01"
    assert reasons.of_refusal(ConfigError("privacy.delta", 0.1, "a number < 0.01")) == line
    assert reasons.of_refusal(DataError("/data/x.npz: torn")) == "data"
    assert reasons.of_refusal(SECRET) == "failed"
    for word in ("data", "key"):
        with pytest.raises(Withheld) as caught, withheld(word):
            # Settings that do not fit the device's own file say what is in it, and where it is.
            raise ConfigError("data (node config)", "/data/x.npz", "a file that is there")
        assert reasons.of_refusal(caught.value) == word
    assert "/data/x.npz: torn" in (tmp_path / "failures.log").read_text()


def test_the_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    reasons = Reasons(leave=False, home=tmp_path)
    (tmp_path / "failures.log").write_bytes(b"x" * (LARGEST + 1))
    reasons.of("train of client 3", SECRET)
    assert (tmp_path / "failures.log").stat().st_size < 1000
    assert (tmp_path / "failures.log.1").stat().st_size == LARGEST + 1


def test_a_log_that_cannot_be_written_costs_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    assert Reasons(leave=False, home=tmp_path / "state").of("x", SECRET) == "failed"
    assert Reasons(leave=False, home=None).of("x", SECRET) == "failed"


def test_the_server_says_what_a_word_means() -> None:
    assert set(WORDS) == {"spent", "failed", "data", "key", "policy"}
    assert meaning("failed") == "it failed; failures.log in the state folder there says why"
    assert meaning("ValueError: odd") == "ValueError: odd"


@pytest.mark.parametrize("fold", ["off", "1"])
def test_a_personal_model_that_breaks_down_shows_in_nothing_that_leaves(
    small: Callable[..., Config], tmp_path: Path, fold: str
) -> None:
    answers = []
    for folder, rate in (("well", 0.1), ("broken", 1e30)):
        settings = (
            *("privacy.enabled=true", "privacy.lr=0.5", "privacy.deterministic_for_tests=true"),
            *(f"training.fold={fold}", f"strategy.params.personal_lr={rate}"),
        )
        stores = tmp_path / folder / "state"
        host = ClientHost(small("perada", *settings, "seed=3"), "perada", ("distill",), stores)
        start = host.algorithm.initial.only(host.algorithm.sends)
        told = [
            answer("train", host, [start], {"clients": ["0"], "rows": {"0": 0}, "round": k})
            for k in (1, 2)
        ]
        answers.append(
            [
                ([row.digest() for row in rows if isinstance(row, Parts)], body)
                for rows, body in told
            ]
        )
        assert (stores / "failures.log").exists() == (folder == "broken")
    assert [len(rows) for rows, _ in answers[0]] == [1, 1]
    losses = [body["reports"]["0"].pop("loss") for told in answers for _, body in told]
    assert len(set(losses)) > 1  # for diagnostics alone
    assert answers[0] == answers[1]
    assert "is no longer finite" in (stores / "failures.log").read_text()
    # The model of before is kept.
    kept = host.store("0").load_round("personal", 2)
    assert kept.first_not_finite() is None and set(kept) == {"personal.body", "personal.head"}
