"""The file of a device's policy: what is refused, and that what is written can be read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from owner import allowing, permitted

from clients.node.device import Device
from clients.policy.enforcement import Enforcement, Refused
from clients.policy.policy import PolicyError, read_policy, write_policy
from fedpers.config import Config

KEY = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_policy(tmp_path / "policy.yaml", operators=(KEY,))
    return tmp_path / "policy.yaml"


def change(path: Path, **rules: Any) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **rules}))


def test_the_strict_policy_is_strict(path: Path) -> None:
    policy = read_policy(path)
    assert policy.operators == (KEY,) and policy.epsilon == 1.0 and policy.unit == "example"
    assert "plain" not in policy.channels and not policy.diagnostics and policy.cohort == 3
    assert policy.messages == ("roster", "train", "channel")
    text = path.read_text()
    assert text.count("\n# ") > len(yaml.safe_load(text))  # each key says what it is
    with pytest.raises(Exception, match="takes a file that is not there yet"):
        write_policy(path, operators=(KEY,))


def test_who_may_write_it(path: Path, tmp_path: Path) -> None:
    for mode in (0o666, 0o664, 0o602):
        path.chmod(mode)
        with pytest.raises(PolicyError, match="nobody but its owner can write; chmod go-w"):
            read_policy(path)
    path.chmod(0o600)
    assert read_policy(path)
    tmp_path.chmod(0o777)  # whoever may write the folder may replace the file
    with pytest.raises(PolicyError, match="nobody but its owner can write"):
        read_policy(path)
    tmp_path.chmod(0o1777)
    assert read_policy(path)
    (tmp_path / "link.yaml").symlink_to(path)
    with pytest.raises(PolicyError, match="takes a file that can be read"):
        read_policy(tmp_path / "link.yaml")
    with pytest.raises(PolicyError, match=r"^policy \(node config\): got None"):
        read_policy(None)


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"epsilom": 1}, r"policy.epsilom: got 'an unknown key', takes a key of a policy; it has"),
        ({"operators": []}, "policy.operators: .* at least one"),
        ({"operators": ["AB" * 32]}, "policy.operators: .* 64 hexadecimal digits"),
        ({"operators": KEY}, "policy.operators: .* a list of texts"),
        ({"epsilon": None}, r"policy.delta: got 1e-05, takes null where epsilon is null"),
        ({"delta": None}, "policy.delta: got None, takes null where epsilon is null, and only"),
        ({"unit": "clinic"}, "policy.unit: got 'clinic', takes example or client"),
        ({"epsilon": True}, "policy.epsilon: got True, takes a number from"),
        ({"epsilon": float("nan")}, "policy.epsilon: got nan, takes a number from"),
        ({"epsilon": float("inf")}, "policy.epsilon: got inf, takes a number from"),
        ({"epsilon": "1e-5"}, "policy.epsilon: got '1e-5', takes a number from"),
        ({"rounds": 2.5}, "policy.rounds: got 2.5, takes whole numbers from"),
        ({"hours": [8, 8]}, r"policy.hours: .* takes two different hours"),
        ({"hours": [8, 30]}, r"policy.hours: .* takes whole numbers from 0 to 24"),
        ({"channels": []}, "policy.channels: .* at least one"),
        ({"messages": ["train"]}, "policy.messages: .* roster among them"),
        ({"messages": ["roster", "train"]}, "policy.messages: .* channel among them, as updates"),
        ({"messages": ["roster", "fetch"]}, "policy.messages: .* some of roster"),
        ({"messages": ["roster", "channel", "method"]}, "policy.messages: .* no `method` where"),
        ({"mechanisms": []}, "policy.mechanisms: .* at least one"),
        ({"diagnostics": "no"}, "policy.diagnostics: got 'no', takes true or false"),
        ({"cohort": 0}, "policy.cohort: got 0, takes whole numbers from 1"),
    ],
)
def test_what_cannot_be_or_contradicts_itself(path: Path, rules: dict[str, Any], why: str) -> None:
    change(path, **rules)
    with pytest.raises(PolicyError, match=why) as found:
        read_policy(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a mapping of keys"),
        ("- 1", "a mapping of keys"),
        ("epsilon: 1", "takes every key of a policy"),
        ("epsilon: 1\nepsilon: 1000", "epsilon comes twice"),
        ("epsilon: [", "valid YAML"),
        ("epsilon: !!python/object/apply:os.abort []", "valid YAML"),
        ("[" * 50_000, "valid YAML"),
        ("\x00", "valid YAML"),
        ("#" * 70_000, "a plain file of at most 65536 bytes"),
    ],
)
def test_what_is_no_policy(path: Path, text: str, why: str) -> None:
    path.write_text(text)
    with pytest.raises(PolicyError, match=why):
        read_policy(path)


# -- the time ------------------------------------------------------------------------------------

DAY = 86_400.0
MORNING = 1_000 * DAY + 9.5 * 3600  # half past nine, UTC


@pytest.fixture
def ask(small: Callable[..., Config], tmp_path: Path) -> Callable[..., None]:
    """``ask(now, 1)``: a message of training in round 1 at some time."""
    config = small("fedavg", "evaluation.diagnostics=false", "rounds=9")
    policy, counter = tmp_path / "policy.yaml", tmp_path / "elsewhere" / "counter"
    device = Device("7", tmp_path / "x.npz", tmp_path / "state", None, policy, counter)
    permit = permitted(config, "fedavg", expires=MORNING + 10 * DAY, run="5" * 32)
    rules = {"rounds_a_day": 2, "hours": (9, 10)}

    def ask(now: float, number: int, **more: Any) -> None:
        allowing(tmp_path / "policy.yaml", config, "fedavg", **{**rules, **more})
        body = {"settings": config.to_json(), "algorithm": "fedavg", "server_params": []}
        body |= {"run_folder": "a", "permit": permit, "round": number}
        message = ConfigRecord({"body": json.dumps(body)})
        content = RecordDict({"message": message, "parts": ArrayRecord()})
        Enforcement(device, clock=lambda: now).admit("train", content)

    return ask


def test_so_many_rounds_a_day_whatever_the_clock_says(ask: Callable[..., None]) -> None:
    ask(MORNING, 1)
    ask(MORNING + 60, 2)
    with pytest.raises(Refused, match="rounds_a_day: got 3"):
        ask(MORNING + 120, 3)
    with pytest.raises(Refused, match="rounds_a_day: got 3"):
        ask(MORNING - DAY, 3)  # a clock set back is as late as it was
    with pytest.raises(Refused, match="rounds_a_day: got 3"):
        ask(0.0, 3)
    ask(MORNING + DAY, 3)
    with pytest.raises(Refused, match="hours: got 10, takes 9 to 10"):
        ask(MORNING + DAY + 3600, 4)


def test_a_permit_that_expired_stays_so_when_the_clock_is_set_back(
    ask: Callable[..., None],
) -> None:
    ask(MORNING, 1)
    with pytest.raises(Refused, match="permit: it expired at"):
        ask(MORNING + 11 * DAY, 2)
    with pytest.raises(Refused, match="permit: it expired at"):
        ask(MORNING, 2)


def test_a_run_goes_on_and_not_back(ask: Callable[..., None]) -> None:
    ask(MORNING, 5)
    with pytest.raises(Refused, match="round: got 3, takes 4 to 9"):
        ask(MORNING, 3)
    ask(MORNING, 4)
    with pytest.raises(Refused, match="round: got 3, takes 4 to 9"):
        ask(MORNING + DAY, 3)


def test_hours_over_midnight(ask: Callable[..., None]) -> None:
    night = {"hours": (22, 6)}
    midnight = 1_000 * DAY
    ask(midnight + 5.9 * 3600, 1, **night)
    for hour in (6, 21.9):
        with pytest.raises(Refused, match="takes 22 to 6"):
            ask(midnight + hour * 3600, 2, **night)
    ask(midnight + 22 * 3600, 2, **night)


def test_what_is_kept_is_torn(ask: Callable[..., None], tmp_path: Path) -> None:
    ask(MORNING, 1)
    kept = tmp_path / "state" / "policy.json"
    kept.write_text(kept.read_text()[:-5])
    with pytest.raises(Refused):
        ask(MORNING, 2)
    assert os.stat(kept).st_size > 0  # and nothing fresh in its place


def test_a_state_from_a_backup_is_refused(ask: Callable[..., None], tmp_path: Path) -> None:
    kept, counter = tmp_path / "state" / "policy.json", tmp_path / "elsewhere" / "counter"
    ask(MORNING, 1)
    backup = kept.read_text()
    ask(MORNING + 60, 2)
    kept.write_text(backup)
    for _ in range(2):
        with pytest.raises(Refused, match=r"state: it is older than .* \(message 1 of 2\)"):
            ask(MORNING + DAY, 3)
    kept.unlink()
    with pytest.raises(Refused, match="message 0 of 2"):
        ask(MORNING + DAY, 1)
    counter.unlink()  # by its owner, who knows what that means
    ask(MORNING + DAY, 1)
    assert counter.read_text() == "1\n" and counter.stat().st_mode & 0o777 == 0o600
    counter.write_text("many")
    with pytest.raises(Refused):
        ask(MORNING + DAY, 2)
