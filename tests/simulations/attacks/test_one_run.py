"""Lower bounds on epsilon: they clear what is sound and refute what is broken, on the clients' real
code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import clients.node.host
import clients.training.trainer
from fedpers.config import Config, load_config
from fedpers.data import Examples
from fedpers.errors import ConfigError
from fedpers.privacy import Release
from fedpers.tasks import Classification
from simulations.attacks import one_run
from simulations.attacks.audited import audited
from simulations.attacks.one_run import Noiseless, lower_bound, random_examples

PRIVATE = ("privacy.enabled=true", "privacy.delta=1e-5", "privacy.deterministic_for_tests=true")
DIGITS = ("data.clients=5", "data.partition.name=iid", "model.name=mlp", "training.lr=0.3")
Broken = Callable[..., None]

# Its private head is trained without noise, and a released phase is held near it.
UNSOUND = """
from clients.base import LocalAlgorithm
from fedpers.phases import Phase, Prox
from strategies.methods.fedavg import FedAvg


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
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    """A build with a share of the noise that it charges for, or that forgot to clip."""
    real = clients.training.trainer.private_steps

    def make(*, noise: float = 1.0, clips: bool = True) -> None:
        def steps(*args: Any, release: Release, max_grad_norm: float, **kwargs: Any) -> float:
            clip = max_grad_norm if clips else 1e6
            own = release.mechanism
            sigma = noise * own.sigma * max_grad_norm / clip
            release = release._replace(mechanism=replace(own, sigma=sigma))
            return real(*args, release=release, max_grad_norm=clip, **kwargs)

        monkeypatch.setattr(clients.training.trainer, "private_steps", steps)

    return make


@pytest.fixture
def unsound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plug-in that leaks, in ``strategy.name``'s form."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"unsound_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(UNSOUND)
    return f"{name}:Server"


def test_what_a_canary_adds_is_its_clipped_gradient(images: Callable[..., Config]) -> None:
    clip = ("training.lr=0.2", "privacy.max_grad_norm=0.5", "training.weight_decay=0.1")
    with audited(images(*PRIVATE, *clip)) as host:
        own = host.data.client("0").train
        canaries = random_examples(own, Classification.numbered(3), 6, seed=0)
        broadcast = host.algorithm.initial.only(host.algorithm.sends)
        noiseless = Noiseless(host, "0", own, canaries, broadcast)
        included = torch.tensor([True, True, False, True, False, False])
        influences, (first, second) = (
            noiseless.influences(torch.arange(6)),
            noiseless.halves(included),
        )
        parameters = [p.requires_grad_() for p in host.model.trainable(["body", "head"])]
        for slot in ("body", "head"):
            host.model.write(slot, broadcast[slot])

        def step(examples: Examples, k: int) -> torch.Tensor:
            loss = F.cross_entropy(host.model(examples.x[k : k + 1]).logits, examples.y[k : k + 1])
            gradient = torch.cat([g.view(-1) for g in torch.autograd.grad(loss, parameters)])
            assert gradient.norm() > 0.5  # clipping is at work
            return -0.2 * gradient * 0.5 / gradient.norm()

        steps = torch.stack([step(canaries, k) for k in range(6)])
        others = torch.stack([step(own, k) for k in range(len(own))]).sum(0)
        torch.testing.assert_close(influences, steps, atol=2e-5, rtol=0)
        for half, inside in ((first, included), (second, ~included)):
            expected = (others + steps[inside].sum(0)).double()
            torch.testing.assert_close(half, expected, atol=2e-4, rtol=0)


def test_forgotten_noise_is_found(images: Callable[..., Config], broken: Broken) -> None:
    broken(noise=1e-9)
    found = lower_bound(images(*PRIVATE, "privacy.epsilon=0.5", "rounds=2"), canaries=50)
    assert found["claimed"] <= 0.5 and found["rounds"] == 2 and found["auc"] == 1
    assert found["at_least"] > 1e3  # it sees that there is none
    assert found["at_least_any"] > 0.5


def test_noise_hides_the_canaries(images: Callable[..., Config]) -> None:
    found = lower_bound(images(*PRIVATE, "privacy.epsilon=0.5", "rounds=2"), canaries=50)
    assert 0.49 < found["claimed"] <= 0.5 and found["sigma"] > 5
    assert max(found["at_least"], found["at_least_any"]) < found["claimed"]


def test_half_the_noise_and_no_clipping_are_found(
    images: Callable[..., Config], broken: Broken
) -> None:
    given = images(*PRIVATE, "privacy.epsilon=8", "privacy.max_grad_norm=0.1")
    sound = lower_bound(given, canaries=200)
    assert 4 < sound["at_least"] < sound["claimed"] <= 8
    broken(noise=0.5)
    assert lower_bound(given, canaries=200)["at_least"] > 10
    broken(clips=False)
    assert lower_bound(given, canaries=200)["at_least"] > 20


def test_what_cannot_be_audited_is_one_line(images: Callable[..., Config], unsound: str) -> None:
    with pytest.raises(ConfigError, match=r"^canaries: got 100000, takes an integer <= \d+, for a"):
        lower_bound(images(*PRIVATE), canaries=100_000)
    with pytest.raises(ConfigError, match=r"reads 'personal.head', which was trained without"):
        lower_bound(images(*PRIVATE, f"strategy.name={unsound}"), canaries=20)


def test_as_many_canaries_as_fit(
    images: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_run, "MEMORY", 300_000)
    assert 10 <= lower_bound(images(*PRIVATE))["canaries"] < 30


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("method", ["fedavg", "perada"])
def test_the_shipped_build_is_not_refuted(method: str, epsilon: float) -> None:
    given = [f"strategy.name={method}", f"privacy.epsilon={epsilon}", "rounds=5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert max(found["at_least"], found["at_least_any"]) < found["claimed"] <= epsilon
    # The attack is no dummy: at a loose epsilon it learns much of it.
    assert epsilon < 8 or found["at_least"] > 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "perada"])
def test_a_build_without_noise_is_refuted(method: str, broken: Broken) -> None:
    broken(noise=1e-9)
    given = [f"strategy.name={method}", "privacy.epsilon=1", "rounds=5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert found["claimed"] <= 1
    assert found["at_least"] > 1e3 and found["at_least_any"] > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_sampling_does_not_hide_that_noise_is_missing(rate: float, broken: Broken) -> None:
    broken(noise=1e-9)
    given = ["strategy.name=fedavg", "privacy.epsilon=1", "rounds=5"]
    given.append(f"privacy.sampling_rate={rate}")
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert found["claimed"] <= 1
    assert found["at_least"] > 1.5
    assert found["auc"] > (0.95 if rate == 0.5 else 0.65)  # at 0.1 six in ten were never drawn


@pytest.mark.slow
def test_a_sampled_build_is_not_refuted() -> None:
    given = ["strategy.name=fedavg", "privacy.epsilon=1", "rounds=5", "privacy.sampling_rate=0.5"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=300)
    assert max(found["at_least"], found["at_least_any"]) < found["claimed"] <= 1


@pytest.mark.slow
def test_a_private_head_read_by_a_released_phase_is_refuted(
    unsound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients.node.host, "check_private", lambda *_: None)  # the plan, bypassed
    given = [f"strategy.name={unsound}", "privacy.epsilon=1", "rounds=1"]
    found = lower_bound(load_config(None, [*DIGITS, *PRIVATE, *given]), canaries=100)
    assert found["claimed"] <= 1 and found["sigma"] > 3  # the noise is there
    assert found["at_least"] > 1.5


@pytest.mark.slow
def test_the_readmes_example_shows_half_of_its_claim() -> None:
    """With as many canaries as it takes by itself."""
    given = ["privacy.epsilon=1", "rounds=10", "model.lora=null", "model.standardise=false"]
    found = lower_bound(load_config(Path("configs/digits.yaml"), [*PRIVATE, *given]))
    assert found["canaries"] == 4000
    assert 0.45 <= found["at_least"] < found["claimed"] <= 1
