"""Malicious clients: who they are, what they send, and what honest clients' models make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedpers.config import Config, load_config
from fedpers.data import Examples, FederatedData, Signature, load_data
from fedpers.errors import ConfigError
from fedpers.parts import Part, Parts
from simulations.attacks.poisoning import (
    NONE,
    Attack,
    Outcome,
    _check,
    plan_of,
    run_attack,
    table,
    triggered,
)
from simulations.backends.serial import run_serial
from simulations.commands.cli import app

DIGITS = (
    *("data.name=digits", "data.clients=5", "data.partition.name=iid", "data.public_fraction=0.1"),
    *("model.name=mlp", "training.batch_size=16", "training.lr=0.3", "rounds=3"),
    *("evaluation.local_baseline=false", "evaluation.adapters=false"),
)


def digits(name: str, *overrides: str) -> Config:
    return load_config(None, [*DIGITS, f"strategy.name={name}", *overrides])


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return load_data(digits("fedavg"))


def parts(body: list[float], head: list[float]) -> Parts:
    return Parts(
        {
            "body": Part.of({"w": torch.tensor(body)}),
            "head": Part.of({"v": torch.tensor(head)}),
        }
    )


# -- who, and what -------------------------------------------------------------------------------


def test_who_is_malicious() -> None:
    clients = [str(k) for k in range(20)]
    chosen = Attack("backdoor").malicious(clients, seed=3)
    assert len(set(chosen)) == 4 and set(chosen) <= set(clients)
    assert Attack("label-flip").malicious(clients, seed=3) == chosen
    assert Attack("label-flip").malicious(clients, seed=4) != chosen
    assert len(Attack("sign-flip", share=0.01).malicious(clients, seed=0)) == 1
    assert len(Attack("sign-flip", share=0.99).malicious(clients, seed=0)) == 19


def test_sign_flip_by_hand() -> None:
    received, trained = parts([1.0, 2.0], [0.0]), parts([2.0, 2.0], [-1.0])
    sent = Attack("sign-flip").sent(received, trained, None)
    # 1 - 3 * 1, 2 - 3 * 0, 0 - 3 * -1
    assert sent["body"].vector.tolist() == [-2.0, 2.0] and sent["head"].vector.tolist() == [3.0]
    # (-3, 0, 3) is 4.243 long: at a norm of 1.414 a third of it is left.
    sent = Attack("sign-flip").sent(received, trained, 2**0.5)
    torch.testing.assert_close(sent["body"].vector, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(sent["head"].vector, torch.tensor([1.0]))


def test_a_backdoor_may_be_boosted_and_labels_are_not() -> None:
    received, trained = parts([1.0, 2.0], [0.0]), parts([2.0, 2.0], [-1.0])
    sent = Attack("backdoor", boost=5.0).sent(received, trained, None)
    assert sent["body"].vector.tolist() == [6.0, 2.0] and sent["head"].vector.tolist() == [-5.0]
    sent = Attack("label-flip", boost=5.0).sent(received, trained, None)
    assert sent["body"].vector.tolist() == [2.0, 2.0] and sent["head"].vector.tolist() == [-1.0]


def test_labels_are_flipped(data: FederatedData) -> None:
    own = Examples(torch.zeros(3, 1, 8, 8), torch.tensor([0, 4, 9]))
    found = Attack("label-flip").poisoned(own, data, 0, "1")
    assert found.y.tolist() == [9, 5, 0] and found.x is own.x


def test_the_trigger_is_a_bright_corner(data: FederatedData) -> None:
    x = torch.zeros(2, 1, 8, 8)
    expected = x.clone()
    expected[:, :, 6:, 6:] = 1.0  # the brightest pixel there is; 2 = 8 / 4
    assert torch.equal(triggered(x, data), expected)
    assert not x.any()  # the original is as it was


def test_in_a_table_it_is_in_the_first_features(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.uniform(0, 7, (60, 32)).astype(np.float32)
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(60) % 2)
    settings = ["data.name=npz", f"data.path={tmp_path / 't.npz'}", "data.clients=2"]
    settings += ["data.scale=none"]
    data = load_data(load_config(None, settings))
    found = triggered(torch.zeros(3, 32), data)
    assert found[:, :2].unique().tolist() == [pytest.approx(x.max())]  # 32 / 16
    assert not found[:, 2:].any()


def test_half_of_the_examples_get_trigger_and_label(data: FederatedData) -> None:
    own = data.client("1").train
    found = Attack("backdoor", target=7).poisoned(own, data, 5, "1")
    changed = (found.x != own.x).flatten(1).any(dim=1)
    bright = (found.x[:, :, 6:, 6:] == 1).flatten(1).all(dim=1)
    assert int(bright.sum()) == len(own) // 2  # none is by nature
    assert set(found.y[bright].tolist()) == {7} and bool((changed <= bright).all())
    assert torch.equal(found.y[~bright], own.y[~bright])
    again = Attack("backdoor", target=7).poisoned(own, data, 5, "1")
    assert torch.equal(again.x, found.x) and torch.equal(again.y, found.y)


# -- whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ditto", "pfedsim"])
def test_without_an_attack_it_is_the_run_as_it_is(name: str, tmp_path: Path) -> None:
    config = digits(name)
    run_serial(config, tmp_path / "run", show=lambda line: None)
    lines = (tmp_path / "run/clients.jsonl").read_text().splitlines()
    scored = [line for line in map(json.loads, lines) if line["round"] == 3]
    malicious = Attack(NONE).malicious([line["client"] for line in scored], config.seed)
    assert len(scored) == 5 and len(malicious) == 1
    honest = [line["test"] for line in scored if line["client"] not in malicious]
    found = run_attack(config, Attack(NONE))
    for mode in ("personal", "global"):
        rates = [test["correct"][mode] / test["n"] for test in honest]
        assert found.accuracy[mode] == pytest.approx(sum(rates) / 4)


def test_a_sign_flip_hurts_the_mean_more_than_the_median() -> None:
    attack = Attack("sign-flip", share=0.4)
    lost = {}
    for combine in ("mean", "median"):
        config = digits("fedavg", f"strategy.combine={combine}")
        before, after = run_attack(config, Attack(NONE, 0.4)), run_attack(config, attack)
        lost[combine] = before.accuracy["global"] - after.accuracy["global"]
    assert lost["mean"] > 0.2 and lost["median"] < lost["mean"] - 0.1


def test_a_backdoor_gets_in_and_is_the_same_each_time() -> None:
    config = digits("fedper", "rounds=6")
    found = run_attack(config, Attack("backdoor", share=0.4, target=3))
    assert set(found.accuracy) == set(found.success) == {"personal"}  # FedPer has no global model
    assert run_attack(config, Attack("backdoor", share=0.4, target=3)) == found
    config = digits("fedavg", "rounds=6", "model.lora=null")
    opened = run_attack(config, Attack("backdoor", share=0.4, target=3))
    shut = run_attack(config, Attack(NONE, share=0.4, target=3))
    assert opened.success["global"] > 0.5 > 0.2 > shut.success["global"]
    assert opened.accuracy["global"] > 0.7


def test_the_norm_bound_holds_for_attackers_too() -> None:
    # They stay within it, so that they are not left out, and their boost is of no use.
    attack = Attack("backdoor", share=0.4, boost=50.0)
    free = digits("fedavg", "rounds=6", "model.lora=null")
    bound = digits("fedavg", "rounds=6", "model.lora=null", "strategy.max_update_norm=1")
    assert run_attack(bound, attack).accuracy["global"] > 0.6
    assert run_attack(free, attack).accuracy["global"] < 0.3


# -- the command ---------------------------------------------------------------------------------


def test_the_table_by_hand() -> None:
    plan = plan_of("ditto", "median", 2)
    none = [Outcome({"personal": 0.9, "global": 0.8}, {"personal": 0.0, "global": 0.1})] * 2
    hit = [
        Outcome({"personal": 0.8, "global": 0.4}, {"personal": 0.2, "global": 0.5}),
        Outcome({"personal": 0.9, "global": 0.2}, {"personal": 0.2, "global": 0.7}),
    ]
    outcomes = {(cell, NONE): none[0] for cell in plan}
    outcomes |= {(cell, "backdoor"): found for cell, found in zip(plan, hit, strict=True)}
    outcomes |= {(cell, "sign-flip"): found for cell, found in zip(plan, hit, strict=True)}
    lines = table(outcomes).splitlines()
    first = "| ditto | median | none | 90.0 ± 0.0 | - | 0.0 ± 0.0 | 80.0 ± 0.0 | - | 10.0 ± 0.0 |"
    assert lines[2] == first
    # 80 and 90: 85, sd 7.1. Lost 10 and 0: 5. Global: 40 and 20; lost 40 and 60.
    cells = "85.0 ± 7.1 | 5.0 ± 7.1 | 20.0 ± 0.0 | 30.0 ± 14.1 | 50.0 ± 14.1 | 60.0 ± 14.1 |"
    assert lines[3] == f"| ditto | median | backdoor | {cells}"
    assert lines[4] == (
        "| ditto | median | sign-flip "
        "| 85.0 ± 7.1 | 5.0 ± 7.1 | - | 30.0 ± 14.1 | 50.0 ± 14.1 | - |"
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("model: {name: mlp}\ndata: {clients: 5}\n")
    return "x.yaml"


def test_the_command_prints_the_table(file: str) -> None:
    chosen = ["--strategies", "fedper", "--attack", "sign-flip", "--combine", "median"]
    result = CliRunner().invoke(app, ["attack", file, *chosen, *DIGITS, "rounds=1"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4 and lines[3].startswith("| fedper | median | sign-flip | ")
    assert lines[2].endswith(" | - | - | - |")  # no global model


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--attack", "bribe"], "error: --attack: got 'bribe', takes one of label-flip, "),
        (["--share", "1"], "error: --share: got 1.0, takes a number > 0 and < 1"),
        (["--boost", "0"], "error: --boost: got 0.0, takes a number > 0"),
        (["--target", "10"], "error: --target: got 10, takes a class, 0 to 9"),
        (["--combine", "mode"], "error: strategy.combine: got 'mode', takes one of"),
        (
            ["privacy.enabled=true", "privacy.unit=client"],
            "error: privacy.unit: got 'client', takes example",
        ),
    ],
)
def test_a_mistake_is_one_line(file: str, arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(app, ["attack", file, "--strategies", "fedavg", *arguments])
    assert result.exit_code == 2, result.stdout
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "signature", "line"),
    [
        ("seed=0", Signature("text", (2, 8)), "data.name: got 'digits', takes images, signals or"),
        ("encryption.enabled=true", Signature("image", (1, 8, 8)), "encryption.enabled: got True"),
    ],
)
def test_what_the_scenario_does_not_know(setting: str, signature: Signature, line: str) -> None:
    data = load_data(digits("fedavg"))
    data.signature = signature
    with pytest.raises(ConfigError) as error:
        _check(digits("fedavg", setting), Attack("backdoor"), data)
    assert str(error.value).startswith(line)
