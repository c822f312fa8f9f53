"""The audit: it finds what is broken, and clears what is not, on the clients' real code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import clients.host
import clients.trainer
from fedpers.config import Config, load_config
from fedpers.data import Examples
from fedpers.errors import ConfigError
from fedpers.privacy import Release
from fedpers.privacy.audit.inversion import psnr
from fedpers.tasks import Classification
from simulations.audit import audit, refuted, results_folder
from simulations.audited import audited
from simulations.cli import app
from simulations.inversion import invert
from simulations.membership import membership
from simulations.one_run import Noiseless, lower_bound, random_examples

PRIVATE = ("privacy.enabled=true", "privacy.delta=1e-5", "privacy.deterministic_for_tests=true")
DIGITS = ("data.clients=5", "data.partition.name=iid", "model.name=mlp", "training.lr=0.3")

# Its private head is trained without noise, and a released phase is held near it.
UNSOUND = """
from clients.base import LocalAlgorithm
from fedpers.phases import Phase, Prox
from strategies.fedavg import FedAvg


class Client(LocalAlgorithm):
    keeps = ("head",)

    def phases(self):
        head = Phase(name="head", model=self.branch(("head",)), trains=("head",),
                     released=False, epochs=100, lr=1.0, batch_size=10000)
        shared = Phase(name="shared", model=self.branch(()), trains=self.slots,
                       released=True, prox=Prox(3.0, {"head": "personal.head"}))
        return [head, shared]


class Server(FedAvg):
    algorithm = f"{__name__}:Client"
"""


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Config]:
    """Settings of two clients with small pictures of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 3
    x = rng.uniform(-1, 1, (3, 1, 5, 5))[y] + 0.3 * rng.standard_normal((80, 1, 5, 5))
    np.savez(tmp_path / "x.npz", x=x.clip(-1, 1).astype(np.float32), y=y)
    own = [
        *("data.name=npz", f"data.path={tmp_path / 'x.npz'}", "data.clients=2"),
        *("data.partition.name=iid", "data.public_fraction=0", "model.name=mlp"),
        *("model.lora=null", "strategy.name=fedavg", "rounds=1"),
    ]
    (tmp_path / "x.yaml").write_text("")
    return lambda *overrides: load_config(tmp_path / "x.yaml", [*own, *overrides])


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that forgot the noise, and still charges for it."""
    real = clients.trainer.private_steps

    def forgets(*args: Any, release: Release, **kwargs: Any) -> float:
        return real(*args, release=release._replace(sigma=1e-9), **kwargs)

    monkeypatch.setattr(clients.trainer, "private_steps", forgets)


@pytest.fixture
def unsound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plug-in that leaks, in ``strategy.name``'s form."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"unsound_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(UNSOUND)
    return f"{name}:Server"


def test_the_influence_of_a_canary_is_its_clipped_gradient(images: Callable[..., Config]) -> None:
    config = images(*PRIVATE, "training.lr=0.2", "privacy.max_grad_norm=0.5")
    with audited(config) as host:
        own = host.data.client("0").train
        canaries = random_examples(own, Classification.numbered(3), 6, seed=0)
        broadcast = host.algorithm.initial.only(host.algorithm.sends)
        noiseless = Noiseless(host, "0", own, canaries, broadcast)
        influences = noiseless.influences()
        inside = torch.tensor([True, False, False, True, True, False])
        with_them, without = noiseless.halves(inside)
        parameters = [p.requires_grad_() for p in host.model.trainable(["body", "head"])]
        for slot in ("body", "head"):
            host.model.write(slot, broadcast[slot])

        def step(examples: Examples, k: int) -> torch.Tensor:
            loss = F.cross_entropy(host.model(examples.x[k : k + 1]).logits, examples.y[k : k + 1])
            gradient = torch.cat([g.view(-1) for g in torch.autograd.grad(loss, parameters)])
            assert gradient.norm() > 0.5  # clipping is at work
            return -0.2 * (gradient * 0.5 / gradient.norm()).double()

        steps = torch.stack([step(canaries, k) for k in range(6)])
        others = torch.stack([step(own, k) for k in range(len(own))])
        torch.testing.assert_close(influences, steps.float(), atol=2e-5, rtol=0)
        for found, chosen in ((with_them, inside), (without, ~inside)):
            known = others.sum(0) + steps[chosen].sum(0)
            torch.testing.assert_close(found, known, atol=2e-4, rtol=0)


def test_forgotten_noise_is_found(images: Callable[..., Config], silent: None) -> None:
    found = lower_bound(images(*PRIVATE, "privacy.epsilon=0.5", "rounds=2"), canaries=50)
    assert found["claimed"] <= 0.5 and found["rounds"] == 2 and found["auc"] == 1
    assert found["at_least"] > 1.5


def test_noise_hides_the_canaries(images: Callable[..., Config]) -> None:
    found = lower_bound(images(*PRIVATE, "privacy.epsilon=0.5", "rounds=2"), canaries=50)
    assert 0.49 < found["claimed"] <= 0.5 and found["sigma"] > 5
    assert found["at_least"] < found["claimed"]


def test_what_cannot_be_audited_is_one_line(images: Callable[..., Config], unsound: str) -> None:
    line = r"^canaries: got 10000000, takes an integer <= \d+, for a client sends \d+ scalars$"
    with pytest.raises(ConfigError, match=line):
        lower_bound(images(*PRIVATE), canaries=10_000_000)
    with pytest.raises(ConfigError, match=r"reads 'personal.head', which was trained without"):
        lower_bound(images(*PRIVATE, f"strategy.name={unsound}"), canaries=20)


def test_an_update_shows_its_example_unless_noised(images: Callable[..., Config]) -> None:
    config = images("privacy.epsilon=1")
    original, found = invert(config, examples=1, steps=150)
    assert original.shape == found.shape == (1, 1, 5, 5)
    assert psnr(original, found, 2.0) > 20
    noised = replace(config.privacy, enabled=True, deterministic_for_tests=True)
    _, hidden = invert(replace(config, privacy=noised), examples=1, steps=150)
    assert psnr(original, hidden, 2.0) < 10


def test_members_are_half_of_each_clients_examples(images: Callable[..., Config]) -> None:
    # A personal model trained long on few examples of much noise remembers them.
    overrides = ["strategy.name=local", "training.epochs=60", "training.lr=0.2"]
    found = membership(images(*overrides), shadows=2)
    assert (found["members"], found["others"]) == (40, 40)
    assert {"loss", "lira"} == found["personal"].keys() and "upload" not in found
    assert found["personal"]["loss"]["auc"] > 0.55


def test_privacy_by_client_is_not_audited_by_examples(
    images: Callable[..., Config], tmp_path: Path
) -> None:
    line = (
        r"^privacy\.unit: got 'client', takes example: what is inserted to be found are examples "
        r"of one client; or set privacy\.enabled=false$"
    )
    with pytest.raises(ConfigError, match=line):
        audit(images(*PRIVATE, "privacy.unit=client"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "client.yaml").write_text(images(*PRIVATE[:1], "privacy.unit=client").to_yaml())
    found = CliRunner().invoke(app, ["audit", str(tmp_path / "client.yaml")])
    assert found.exit_code == 2 and found.stderr.startswith("error: privacy.unit: got 'client'")
    assert found.stderr.count("\n") == 1


def test_where_the_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run-1.0"
    run.mkdir()
    assert results_folder(run, [], None) == results_folder(Path("run-1.0"), [], None) == run
    # With other settings it is not that run that is audited.
    assert results_folder(run, ["rounds=3"], None) == tmp_path / "runs" / "audit-run-1.0"
    assert results_folder(Path("some/digits.yaml"), [], None) == tmp_path / "runs" / "audit-digits"
    assert results_folder(run, ["rounds=3"], Path("there")) == tmp_path / "there"


@pytest.mark.slow
def test_an_audit_of_a_run_is_in_its_report(images: Callable[..., Config], tmp_path: Path) -> None:
    config = images("privacy.enabled=true", f"output={tmp_path / 'runs'}", "rounds=1")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    command = CliRunner()
    ran = command.invoke(app, ["run", str(tmp_path / "run.yaml"), "--backend", "serial"])
    assert ran.exit_code == 0, ran.output
    (run,) = (tmp_path / "runs").iterdir()
    audited = command.invoke(app, ["audit", str(run), "--canaries", "10", "--shadows", "2"])
    assert audited.exit_code == 0, audited.output
    assert json.loads((run / "audit.json").read_text())["epsilon"]["canaries"] == 10
    assert (run / "inversion.png").exists() and f"files: {run}" in audited.stdout
    shown = command.invoke(app, ["report", str(run)])
    assert shown.exit_code == 0, shown.output
    page = (run / "report.html").read_text()
    assert "The claim is not refuted." in page and "data:image/png;base64," in page


@pytest.mark.slow
def test_the_command(images: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "audited.yaml").write_text(images(*PRIVATE, "privacy.epsilon=1").to_yaml())
    out = tmp_path / "results"
    arguments = ["audit", str(tmp_path / "audited.yaml"), "training.lr=0.1", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--canaries", "10", "--shadows", "2"])
    assert result.exit_code == 0, result.output
    assert "epsilon: claimed 1.00, at least 0.00" in result.stdout
    assert "not refuted" in result.stdout and "membership, privacy on" in result.stdout
    found = json.loads((out / "audit.json").read_text())
    assert found.keys() == {"epsilon", "membership", "inversion"}
    assert len(found["inversion"]["off"]) == len(found["inversion"]["on"]) == 6
    assert (out / "inversion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("method", ["fedavg", "perada"])
def test_the_shipped_build_is_not_refuted(method: str, epsilon: float) -> None:
    given = [f"strategy.name={method}", f"privacy.epsilon={epsilon}", "rounds=5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert found["at_least"] < found["claimed"] <= epsilon
    # The attack is no dummy: at a loose epsilon it learns something.
    assert epsilon < 8 or found["at_least"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "perada"])
def test_a_build_without_noise_is_refuted(method: str, silent: None) -> None:
    given = [f"strategy.name={method}", "privacy.epsilon=1", "rounds=5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert found["claimed"] <= 1
    assert found["at_least"] > 3


@pytest.mark.slow
def test_sampling_does_not_hide_that_noise_is_missing(silent: None) -> None:
    given = ["strategy.name=fedavg", "privacy.epsilon=1", "rounds=5", "privacy.sampling_rate=0.5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert found["claimed"] <= 1
    # Who was drawn is noise to a bound for noised sums; guesses take it as it is.
    assert found["at_least_any"] > 3 and refuted({"epsilon": found})
    assert found["auc"] > 0.85


@pytest.mark.slow
def test_a_sampled_build_is_not_refuted() -> None:
    given = ["strategy.name=fedavg", "privacy.epsilon=1", "rounds=5", "privacy.sampling_rate=0.5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert found["at_least"] < found["claimed"] <= 1


@pytest.mark.slow
def test_a_private_head_read_by_a_released_phase_is_refuted(
    unsound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients.host, "check_private", lambda *_: None)  # the plan, bypassed
    given = [f"strategy.name={unsound}", "privacy.epsilon=1", "rounds=1"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=100)
    assert found["claimed"] <= 1 and found["sigma"] > 3  # the noise is there
    assert found["at_least"] > 1.5
