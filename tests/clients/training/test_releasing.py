"""Sums and single gradients that may leave: what they are, what they cost, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.admission import check_private, check_told
from clients.base import LocalAlgorithm
from clients.methods.fedavg import FedAvg
from clients.training.account import POLL, REPORT, SUMS, Account
from clients.training.private_steps import private_steps
from clients.training.reporting import Told, told
from clients.training.trainer import Trainer
from fedpers.context import Context
from fedpers.data import ClientData
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.phases import Phase
from fedpers.privacy.noise import known
from fedpers.stats import Stat, readable

PRIVATE = ("privacy.enabled=true", "privacy.delta=1e-3", "privacy.steps=2", "rounds=4")
LOSS = Stat("loss", 0.0, 2.0)


class Sums(FedAvg):
    """Two sums a round, and a number."""

    releases_sums = 2
    reports = (LOSS, Stat("share", -1.0, 1.0))
    polls = (LOSS,)

    def report(self, working: Parts, trainer: Trainer) -> Told:
        return {
            "loss": trainer.examples.x[:, 0],
            "share": torch.full((len(trainer.examples),), 0.5),
        }


class Steps(FedAvg):
    """Takes its gradients itself."""

    def phases(self) -> list[Phase]:
        return [replace(self.shared_phase(), gradients=3)]


def privately(toys: Any, folder: Path, method: type[LocalAlgorithm], *more: str) -> Any:
    """A method bound to the toys, whose trainer has an account that was charged for a round."""
    bound = toys.bind("fedavg", *PRIVATE, *more)
    algorithm, own = method(bound.config, bound.model, None), bound.trainer.examples
    bound.trainer.account = toys.quiet(bound.config, algorithm, ClientData(own, own, own), folder)
    bound.trainer.account._store.save_json("released", {"examples": 4})
    bound.trainer.account.due(first=False)
    return bound._replace(algorithm=algorithm)


def quiet(account: Account, *names: str) -> None:
    """No noise in these sums."""
    for name in names:
        account.each[name] = account.each[name]._replace(
            mechanism=replace(account.each[name].mechanism, sigma=0.0)
        )


def test_sums_of_clipped_rows_by_hand(toys: Any, tmp_path: Path) -> None:
    # Norms 1, 10 and 5 of which the second is clipped to 5: (3, 4); one that is not finite is out.
    x = torch.tensor([[1.0, 0.0], [6.0, 8.0], [0.0, -5.0], [float("nan"), 1.0]])
    plain, private = toys.bind("fedavg"), privately(toys, tmp_path, Sums)
    quiet(private.trainer.account, SUMS)
    for trainer in (plain.trainer, private.trainer):
        total, count = trainer.release_sums(x, 5.0)
        torch.testing.assert_close(total, torch.tensor([4.0, -1.0]))
        assert float(count) == pytest.approx(3)
    with pytest.raises(ClientError, match=r"^sums: got \(3, 2\), takes a row for each example"):
        plain.trainer.release_sums(x[:3], 1.0)


def test_a_sum_is_noised_for_its_bound_and_taken_as_often_as_was_charged(
    toys: Any, tmp_path: Path
) -> None:
    bound = privately(toys, tmp_path, Sums)
    sigma = bound.trainer.account.each[SUMS].mechanism.sigma
    total, count = bound.trainer.release_sums(torch.zeros(4, 20_000), 3.0)
    assert float(total.std()) == pytest.approx(2**0.5 * sigma * 3.0, rel=0.03)
    assert float(count) != 4
    other, _ = bound.trainer.release_sums(torch.zeros(4, 20_000), 3.0)
    assert not torch.equal(total, other)
    with pytest.raises(ClientError, match=r"not charged for sums; set releases_sums, "):
        bound.trainer.release_sums(torch.zeros(4, 2), 3.0)
    unsaid = privately(toys, tmp_path / "other", FedAvg)
    with pytest.raises(ClientError, match=r"not charged for sums; set releases_sums, "):
        unsaid.trainer.release_sums(torch.zeros(4, 2), 3.0)


def test_all_rounds_together_keep_to_the_budget(toys: Any, tmp_path: Path) -> None:
    bound = privately(toys, tmp_path, Sums, "privacy.epsilon=2")
    account = bound.trainer.account
    shares = {name: r.mechanism.sigma for name, r in account.each.items()}
    # Of all rounds together 0.3 of 1 / sigma, by two sums in each of four; 0.125, by one.
    assert shares[SUMS] / shares[REPORT] == pytest.approx((8**0.5 / 0.3) / (4**0.5 / 0.125))
    assert shares[POLL] == shares[REPORT]
    fresh = Account(
        bound.config,
        bound.algorithm.releases(),
        "a",
        ClientData(*[bound.trainer.examples] * 3),
        tmp_path / "fresh",
        account._store,
        known(0),
    )
    for _ in range(4):
        fresh.charge_poll()
        fresh.charge()
    assert 1.98 < fresh.budget.spent <= 2


# -- reports -----------------------------------------------------------------------------------


def test_what_is_told_plainly_is_clipped(toys: Any) -> None:
    bound = toys.bind("fedavg")  # x[:, 0] is 1, 2, -1, 0

    def say(values: Told) -> Any:
        return lambda working, trainer: values

    x = bound.trainer.examples.x[:, 0]
    given = (Parts(), bound.trainer)
    assert told("report", [LOSS], say({"loss": x}), *given) == {"loss": 0.75}  # 1, 2, 0, 0
    assert told("report", [LOSS], say({"loss": 5.0}), *given) == {"loss": 2.0}
    for values, line in (
        ({"loss": float("nan")}, "report: loss is not finite"),
        ({"loss": x / 0}, "report: loss is not finite"),
        ({"los": 1.0}, "report: got los, takes loss"),
        ({}, "report: got none, takes loss"),
    ):
        with pytest.raises(ClientError, match=f"^{line}$"):
            told("report", [LOSS], say(values), *given)
    nobody = toys.bind("fedavg", x=[], y=[]).trainer
    assert told("report", [LOSS], say({"loss": float("nan")}), Parts(), nobody) == {}


@pytest.mark.parametrize("weights", ["uniform", "counts"])
def test_what_is_told_privately_is_of_each_example(toys: Any, tmp_path: Path, weights: str) -> None:
    bound = privately(toys, tmp_path, Sums, f"privacy.weights={weights}")
    sums, account = bound.algorithm, bound.trainer.account
    given = (sums.report, Parts(), bound.trainer)
    quiet(account, REPORT)
    found = told(REPORT, sums.reports, *given)
    assert found["loss"] == pytest.approx(0.75) and found["share"] == pytest.approx(0.5)
    with pytest.raises(ClientError, match="not charged for report"):
        told(REPORT, sums.reports, *given)  # once a round

    def one(working: Parts, trainer: Trainer) -> Told:
        return {"loss": 1.0, "share": 0.0}

    with pytest.raises(ClientError, match=r"^report: loss is one number, and with privacy takes a"):
        told(REPORT, sums.reports, one, Parts(), bound.trainer)


def test_what_is_told_privately_is_noised_and_within_its_bounds(toys: Any, tmp_path: Path) -> None:
    many = tuple(Stat(str(k), -100.0, 100.0) for k in range(2000))
    zeros = {stat.name: torch.zeros(4) for stat in many}
    bound = privately(toys, tmp_path, Sums)
    sigma = bound.trainer.account.each[REPORT].mechanism.sigma
    found = told(REPORT, many, lambda working, trainer: zeros, Parts(), bound.trainer)
    # A row of 2000 values of at most 1 is at most sqrt(2000) long; four examples.
    spread = 100 * sigma * 2000**0.5 / 4
    beyond = 2 * (1 - torch.distributions.Normal(0.0, spread).cdf(torch.tensor(100.0)))
    at_bounds = sum(abs(value) == 100 for value in found.values()) / 2000
    assert at_bounds == pytest.approx(float(beyond), abs=0.03) and len(set(found.values())) > 2
    assert readable(found, many)


def test_what_a_client_told_is_read_by_its_bounds() -> None:
    assert readable({"loss": 2.0}, [LOSS]) and readable({"loss": 0}, [LOSS])
    for odd in (
        {},
        {"loss": 2.1},
        {"loss": float("nan")},
        {"loss": "1"},
        {"loss": True},
        {"loss": 1.0, "more": 1.0},
        [1.0],
        None,
    ):
        assert not readable(odd, [LOSS])
    for low, high in ((1, 1), (0, float("inf")), (float("nan"), 1)):
        with pytest.raises(ValueError, match=r"^stat 'x': got .*, takes low < high$"):
            Stat("x", low, high)


def test_what_no_noise_covers_is_refused(toys: Any) -> None:
    class Talks(FedAvg):
        messages = ("labels",)

        def answer(
            self, kind: str, working: Parts, body: Mapping[str, Any], trainer: Trainer
        ) -> Mapping[str, Any]:
            return {"labels": trainer.examples.y.tolist()}

    bound = toys.bind("fedavg", *PRIVATE)
    line = "as no noise covers what 'labels' answers; tell it in reports or polls"
    with pytest.raises(ConfigError, match=line):
        check_private("talks", Talks(bound.config, bound.model, None))
    by_client = toys.bind("fedavg", *PRIVATE, "privacy.unit=client")
    with pytest.raises(ConfigError, match=r"tells nothing beside its updates, .* tells loss$"):
        check_told("sums", Sums(by_client.config, by_client.model, None))


# -- single gradients --------------------------------------------------------------------------


def test_without_privacy_it_is_the_gradient(toys: Any) -> None:
    bound = toys.bind("fedavg")
    algorithm = Steps(bound.config, bound.model, None)
    received = toys.random(algorithm, ("body", "head"), 3)
    working, batch = algorithm.receive(received, Parts(), Context("a", 1)), torch.tensor([0, 2])
    (phase,) = algorithm.phases()
    found = bound.trainer.private_gradient(phase, working, batch)
    expected, _ = bound.trainer.gradient(phase, working, batch)
    assert all(torch.equal(found[slot].vector, expected[slot].vector) for slot in expected)
    with pytest.raises(ClientError, match=r"it is not released; take trainer\.gradient"):
        bound.trainer.private_gradient(replace(phase, released=False), working, batch)


def test_a_private_gradient_is_clipped_and_noised_per_example(toys: Any, tmp_path: Path) -> None:
    bound = privately(toys, tmp_path, Steps, "privacy.max_grad_norm=0.1")
    algorithm, trainer = bound.algorithm, bound.trainer
    received = toys.random(algorithm, ("body", "head"), 3)
    working = algorithm.receive(received, Parts(), Context("a", 1))
    (phase,) = algorithm.phases()
    assert [len(batch) for batch in trainer.batches(phase)] == [0, 0, 0]
    # Against the mean of the examples' own gradients, each clipped; all are in the sample.
    plain = toys.bind("fedavg").trainer
    total = 0.0
    for k in range(4):
        own, _ = plain.gradient(phase, working, torch.tensor([k]))
        whole = torch.cat([own["body"].vector, own["head"].vector])
        total = total + whole * min(1.0, 0.1 / float(whole.norm())) / 4
    found = trainer.private_gradient(phase, working, torch.arange(0))
    joined = torch.cat([found["body"].vector, found["head"].vector])
    torch.testing.assert_close(joined, total, rtol=1e-4, atol=1e-6)
    trainer.account.phase = trainer.account.phase._replace(
        mechanism=replace(trainer.account.phase.mechanism, sigma=1e6)
    )
    loud = [trainer.private_gradient(phase, working, torch.arange(0)) for _ in range(2)]
    assert not torch.equal(loud[0]["head"].vector, loud[1]["head"].vector)
    # sigma C / n, in six values.
    assert 1e3 < float(loud[0]["head"].vector.std()) < 1e5
    with pytest.raises(ClientError, match=r"charged for 3 gradients, .* declare it in Phase\.grad"):
        trainer.private_gradient(phase, working, torch.arange(0))
    with pytest.raises(ClientError, match="charged for 0 released phases"):
        trainer.run(phase, working)


def test_single_gradients_are_the_steps_of_a_private_phase(toys: Any, tmp_path: Path) -> None:
    """Taken one by one and applied by hand they move a model as a private phase's steps do."""
    bound = privately(toys, tmp_path, Steps)
    algorithm, trainer = bound.algorithm, bound.trainer
    working = algorithm.receive(
        toys.random(algorithm, ("body", "head"), 3), Parts(), Context("a", 1)
    )
    (phase,) = algorithm.phases()
    stepped = working
    for batch in trainer.batches(phase):
        gradient = trainer.private_gradient(phase, stepped, batch)
        stepped = stepped | {
            s: stepped[s].like(stepped[s].vector - 0.1 * g.vector) for s, g in gradient.items()
        }
    trainer._fill(phase.model, working)
    parameters = trainer._only(phase.trains)
    private_steps(
        trainer.model,
        parameters,
        torch.optim.SGD(parameters, lr=0.1),
        trainer._losses(phase, None),
        examples=4,
        expected=4.0,
        release=trainer.account.phase._replace(steps=3),
        max_grad_norm=bound.config.privacy.max_grad_norm,
        after_noise=lambda: None,
        source=known(0)("x"),
    )
    for slot in ("body", "head"):
        expected: Tensor = trainer.model.read(slot).vector
        torch.testing.assert_close(stepped[slot].vector, expected)


def test_gradients_are_charged_as_steps(toys: Any, tmp_path: Path) -> None:
    bound = privately(toys, tmp_path, Steps)
    assert bound.algorithm.releases().phases == 0 and bound.algorithm.releases().gradients == 3
    assert bound.trainer.account.round.steps == 3
    assert sum(r.steps for r in bound.trainer.account.budget.ledger.releases) == 3
