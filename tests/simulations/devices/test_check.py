"""``fedpers device check``: what it finds, and each reason for which a device cannot take part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from clients.node.device import Device
from fedpers.channels.identity.home import (
    IDENTITY,
    REGISTRY,
    deal_identities,
    new_identity,
)
from fedpers.channels.sealed import new_keys
from fedpers.config import load_config
from fedpers.permit import read_permit
from fedpers.privacy import Gaussian, Ledger, Release
from simulations.commands.cli import app
from strategies.base import find_strategy

CONFIG = Path(__file__).parents[3] / "configs" / "devices.yaml"

Check = Callable[..., Result]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key for three clients, an identity and a registry."""
    folder = tmp_path_factory.mktemp("keys")
    new_keys(folder, "auto", 3)
    deal_identities(new_identity, folder / "server", {"clinic-7": folder})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty digits of three classes."""
    x = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 3)
    return tmp_path / "own.npz"


@pytest.fixture
def check(tmp_path: Path, data: Path, keys: Path) -> Check:
    """``check("privacy.delta=1")``: the command on the shipped settings."""

    def check(*overrides: str, data: Path = data, keys: Path | None = keys) -> Result:
        options = ["--config", str(CONFIG), "--data", str(data), "--client", "clinic-7"]
        options += ["--state", str(tmp_path / "state")]
        options += [] if keys is None else ["--keys", str(keys)]
        return CliRunner().invoke(app, ["device", "check", *options, *overrides])

    return check


def refusal(result: Result) -> str:
    """The one line on standard error."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_a_device_that_can_take_part(check: Check, tmp_path: Path) -> None:
    result = check()
    assert result.exit_code == 0 and result.stderr == ""
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    sizes = "24 for training, 6 for validation, 10 to test"
    assert lines["data"] == f"{sizes}; image (1, 8, 8), 10 classes"
    assert lines["model"].startswith("mlp for perada, ")
    assert lines["privacy"] == "0.00 of epsilon 8 at delta 0.001 are spent"
    assert "bfv" in lines["key"] and "bits of security" in lines["key"]
    assert lines["state"] == f"{tmp_path / 'state'} can be written"
    assert list((tmp_path / "state").iterdir()) == []  # nothing was charged
    off = check("privacy.enabled=false", "encryption.enabled=false", keys=None)
    assert off.exit_code == 0 and "privacy: off" in off.stdout and "key:" not in off.stdout


def test_settings_that_protect_nothing_here(check: Check) -> None:
    line = refusal(check("privacy.delta=0.05"))
    assert line.startswith("privacy.delta: got 0.05, takes a number < 0.042, for client clinic-7")
    line = refusal(check("privacy.sampling_rate=0.01"))
    assert line.startswith("privacy.sampling_rate: got 0.01, takes a number >= 0.042, for client")
    line = refusal(check("privacy.epsilon=1e-6", "privacy.delta=1e-9"))
    assert line.startswith("privacy.epsilon: got 1e-06, takes a number > ")


def test_a_budget_that_is_spent(check: Check, tmp_path: Path) -> None:
    ledger = Ledger.named(tmp_path / "state" / "ledgers", "clinic-7")
    ledger.charge([Release(Gaussian(2.0, 1.0), 3)])
    assert check().exit_code == 0
    ledger.charge([Release(Gaussian(1.0, 1.0), 10)])
    line = refusal(check())
    assert line.startswith("privacy.epsilon: got 8.0, takes more than the ")
    assert line.endswith("that earlier runs have spent")
    ledger.path.write_text("{")
    assert refusal(check()).startswith(f"ledger: {ledger.path} cannot be read")
    ledger.path.unlink()
    assert refusal(check()).startswith(f"ledger: {ledger.path} is gone; restore it from a backup")


def test_a_state_folder_of_another_client(check: Check, tmp_path: Path) -> None:
    Device("clinic-8", tmp_path / "x.npz", tmp_path / "state").claim()
    line = "belongs to client 'clinic-8', and this is client 'clinic-7'; give each client a state"
    assert line in refusal(check())


def test_a_class_that_nobody_told_of(check: Check, data: Path) -> None:
    assert refusal(check("data.columns.classes=2")) == (
        f"{data}: y: got int64 such as 2, takes integers in 0..1"
    )
    line = refusal(check("data.columns.classes=null"))
    assert line.startswith("data.columns.classes: got None, takes how many classes there are")


def test_a_file_that_cannot_be_used(check: Check, tmp_path: Path) -> None:
    line = refusal(check(data=tmp_path / "no.npz"))
    assert line.startswith("data (node config): got ")
    np.savez(tmp_path / "few.npz", x=np.zeros((1, 1, 8, 8), np.float32), y=np.zeros(1, np.int64))
    few = check("privacy.enabled=false", data=tmp_path / "few.npz")
    assert few.exit_code == 0 and "data: 1 for training, 0 for validation" in few.stdout


def test_a_key_that_others_can_read(check: Check, keys: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copied"
    copy.mkdir()
    (copy / "client.key").write_bytes((keys / "client.key").read_bytes())
    (copy / "client.key").chmod(0o644)
    line = refusal(check(keys=copy))
    assert line == (f"key file: got '0o644', takes mode 0600; chmod 600 {copy / 'client.key'}")
    (copy / "client.key").chmod(0o600)
    assert refusal(check(keys=copy)).startswith("identity: got ")
    shutil.copy2(keys / IDENTITY, copy)
    assert "registry.json, as your deployment has it" in refusal(check(keys=copy))
    shutil.copy2(keys / REGISTRY, copy)
    assert check(keys=copy).exit_code == 0
    (copy / "client.key").write_bytes((keys / "server.context").read_bytes())
    assert "takes a client file" in refusal(check(keys=copy))
    assert refusal(check(keys=None)).startswith("keys: got None, takes the folder with client.key")
    assert "takes a key file that can be read" in refusal(check(keys=tmp_path / "none"))


def test_a_state_that_cannot_be_written(check: Check, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert refusal(check("privacy.enabled=false")).startswith("state: got ")


# -- the policy ----------------------------------------------------------------------------------


def test_what_a_run_would_cost_and_what_its_owner_refuses(check: Check, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["operator", "new", "--out", str(tmp_path / "operator.key")])
    operator = made.stdout.strip()
    policy, strict = tmp_path / "policy.yaml", tmp_path / "strict.yaml"
    options = ["device", "policy", "new", "--operator", operator]
    for out, more in ((policy, ["--config", str(CONFIG)]), (strict, [])):
        assert CliRunner().invoke(app, [*options, "--out", str(out), *more]).exit_code == 0
    result = check("--policy", str(policy))
    assert result.exit_code == 0, result.output
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert lines["policy"] == f"{policy} allows this run, signed by {operator}"
    assert lines["cost"] == (
        "epsilon 0.00 of 8 is spent at delta 0.001; this run takes up to 8.00 more, and 0.00 is "
        "left after it"
    )
    assert lines["time"] == "run 1 of 1; 3 rounds in 1 day or more, at any hour"
    result = check("--policy", str(strict))
    assert refusal(result).endswith("takes settings that it allows (3 refused, as above)")
    assert result.stdout.splitlines() == [
        "policy refuses: strategy.name: got 'perada', takes fedavg",
        "policy refuses: privacy.epsilon: got 8, takes at most 1",
        "policy refuses: privacy.delta: got 0.001, takes at most 1e-05",
        "cost: epsilon 0.00 of 1 is spent at delta 0.001; this run takes up to 8.00 more, and "
        "0.00 is left after it",
        "time: run 1 of 1; 3 rounds in 1 day or more, at any hour",
    ]
    assert "takes a file that can be read" in refusal(check("--policy", str(tmp_path / "none")))


def test_what_is_left_of_a_budget_and_of_runs(check: Check, tmp_path: Path) -> None:
    """A second run, of half the budget that its owner allows, after a first one."""
    key, state = tmp_path / "operator.key", tmp_path / "state"
    ledger = Ledger.named(state / "ledgers", "clinic-7")
    operator = CliRunner().invoke(app, ["operator", "new", "--out", str(key)]).stdout.strip()
    policy, out = tmp_path / "policy.yaml", ["--out", str(tmp_path / "policy.yaml")]
    made = ["device", "policy", "new", "--operator", operator, "--config", str(CONFIG)]
    assert CliRunner().invoke(app, [*made, *out]).exit_code == 0
    policy.write_text(policy.read_text().replace("\nrounds_a_day: 100", "\nrounds_a_day: 2"))
    release = Release(Gaussian(2.0, 1.0), 3)
    ledger.charge([release])
    spent = ledger.epsilon(1e-3)
    assert 1 < spent < 4
    result = check("privacy.epsilon=4", "--policy", str(policy))
    assert result.exit_code == 0, result.output
    assert f"cost: epsilon {spent:.2f} of 8 is spent at delta 0.001; this run takes up to " in (
        result.stdout
    )
    assert f"{4 - spent:.2f} more, and 4.00 is left after it" in result.stdout
    assert "time: run 1 of 1; 3 rounds in 2 days or more, at any hour" in result.stdout
    run = {"folder": "a", "round": 1, "trained": 1}
    (state / "policy.json").write_text(json.dumps({"runs": {"5": run}}))
    assert "(1 refused, as above)" in refusal(check("--policy", str(policy)))
    (state / "policy.json").write_text("{")
    assert "policy.json cannot be read" in refusal(check("--policy", str(policy)))
    (state / "policy.json").unlink()
    # The permit that the settings name is looked at, too.
    signed = ["operator", "sign", str(CONFIG), "--key", str(key), "--hours", "0.01"]
    permit = tmp_path / "permit.json"
    assert CliRunner().invoke(app, [*signed, "--out", str(permit)]).exit_code == 0
    assert check(f"permit={permit}", "--policy", str(policy)).exit_code == 0
    (state / "policy.json").write_text(
        json.dumps({"runs": {read_permit(permit).said()["run"]: run}})
    )
    assert check(f"permit={permit}", "--policy", str(policy)).exit_code == 0  # it goes on
    result = check(f"permit={permit}", "rounds=2", "--policy", str(policy))
    assert result.stdout.splitlines()[0] == (
        "policy refuses: permit: got other settings than it was signed for"
    )
    assert result.exit_code == 2


def test_a_node_without_a_policy_does_not_start(tmp_path: Path) -> None:
    files = ("root-certificates", "key", "data", "state", "policy")
    options = [f"--{name}={tmp_path / name}" for name in files]
    run = ["device", "run", "--server=127.0.0.1:1", "--client=clinic-7", *options]
    line = refusal(CliRunner().invoke(app, run))
    assert line.startswith("policy: got ") and "takes a file that can be read" in line
    assert not (tmp_path / "state").exists()


def test_the_operator_signs_a_run(tmp_path: Path) -> None:
    def sign(*options: str) -> Result:
        files = ["--key", str(tmp_path / "operator.key"), "--out", str(tmp_path / "permit.json")]
        return CliRunner().invoke(app, ["operator", "sign", str(CONFIG), *files, *options])

    assert "--key: got" in refusal(sign())
    key = ["operator", "new", "--out", str(tmp_path / "operator.key")]
    made = CliRunner().invoke(app, key)
    assert (tmp_path / "operator.key").stat().st_mode & 0o777 == 0o600
    assert "takes a file that is not there yet" in refusal(CliRunner().invoke(app, key))
    assert sign().exit_code == 0
    first = read_permit(tmp_path / "permit.json")
    assert first.operator == made.stdout.strip()
    config = load_config(CONFIG, [f"data.path={tmp_path}", "output=x", "simulation.nodes=7"])
    assert first.allows(config, "perada", find_strategy(config).param_names())
    assert not first.allows(load_config(CONFIG, ["rounds=4"]), "perada", [])
    assert sign("--again", str(tmp_path / "permit.json"), "rounds=9").exit_code == 0
    again = read_permit(tmp_path / "permit.json").said()
    assert again["run"] == first.said()["run"] and again["settings"]["rounds"] == 9
    (tmp_path / "permit.json").write_text("{}")
    assert "takes a permit (permit: takes an object" in refusal(
        sign("--again", str(tmp_path / "permit.json"))
    )
