"""One client's account: calibration, what a round costs, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clients.node.host import ClientHost
from clients.node.store import ClientStore
from clients.training.account import LABELS, Account, check_client
from fedpers.config import Config, load_config
from fedpers.context import Context
from fedpers.data import ClientData, Examples
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.phases import Phase
from fedpers.privacy import BudgetSpent, Gaussian, Ledger, Release, data_digest, epsilon_of
from fedpers.privacy.accounting import calibrated, default_delta
from fedpers.privacy.noise import known, secret

EPSILON = 3.0


def private(*overrides: str) -> tuple[str, ...]:
    return ("privacy.enabled=true", f"privacy.epsilon={EPSILON}", *overrides)


def data_of(n: int, seed: int = 0) -> ClientData:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n + 4, 2, generator=generator), torch.arange(n + 4) % 2
    cuts = torch.arange(n + 4).split([n, 2, 2])
    return ClientData(*(Examples(x[rows], y[rows]) for rows in cuts))


def account_of(toys: Any, folder: Path, name: str, *overrides: str, n: int = 20) -> Account:
    bound = toys.bind(name, *private(*overrides))
    store = ClientStore(folder / "store", "a")
    return Account(
        bound.config, bound.algorithm.releases(), "a", data_of(n), folder, store, known(0)
    )


@pytest.mark.parametrize(
    ("name", "phases", "rate"), [("fedavg", 1, 0.25), ("ditto", 1, 1.0), ("fedrep", 2, 1.0)]
)
def test_the_noise_is_calibrated_for_the_whole_run(
    toys: Any, tmp_path: Path, name: str, phases: int, rate: float
) -> None:
    settings = ["rounds=7", "privacy.steps=3", f"privacy.sampling_rate={rate}"]
    account = account_of(toys, tmp_path, name, *settings)
    assert account.delta == default_delta(20) == 1e-3
    steps = 7 * phases * 3
    assert account.phase.mechanism == calibrated(Gaussian, EPSILON, 1e-3, rate, steps)
    for _ in range(7):
        account.charge()
    assert account.budget.ledger.releases == [Release(account.phase.mechanism, steps)]
    assert 0.99 * EPSILON < account.budget.spent <= EPSILON
    with pytest.raises(BudgetSpent):
        account.charge()


def test_clients_of_like_size_share_one_calibration(toys: Any, tmp_path: Path) -> None:
    settings = ["rounds=7", "privacy.sampling_rate=0.3", "privacy.epsilon=2.5"]

    def sigma(n: int) -> float:
        bound, store = toys.bind("prior", *private(*settings)), ClientStore(tmp_path / str(n), "a")
        opening = (
            bound.config,
            bound.algorithm.releases(),
            "a",
            data_of(n, seed=n),
            tmp_path,
            store,
        )
        return Account(*opening, secret).phase.mechanism.sigma

    first, before = sigma(10), calibrated.cache_info().misses
    assert {sigma(n) for n in range(11, 111)} == {first}
    assert calibrated.cache_info().misses == before


def test_a_client_that_is_chosen_more_often_than_expected_runs_out(
    toys: Any, tmp_path: Path
) -> None:
    account = account_of(toys, tmp_path, "fedavg", "rounds=10", "strategy.fraction=0.25")
    for _ in range(3):  # 2.5 rounds, rounded up
        account.charge()
    with pytest.raises(BudgetSpent):
        account.charge()


def test_counts_are_paid_for_once_and_noised(toys: Any, tmp_path: Path) -> None:
    account = account_of(toys, tmp_path, "prior", "rounds=2")
    (release,) = account.once.values()
    # It takes .3^2 = 9 % of mu^2, which adds up.
    whole = calibrated(Gaussian, EPSILON, 1e-3, 1.0, 1)
    assert release == Release(Gaussian(whole.sigma / 0.3, 1.0), 1)
    account.charge(LABELS)
    source, counts = known(0)(), torch.full((20_000,), 1000.0)
    noise = account.noised(LABELS, counts, source) - counts
    assert float(noise.std()) == pytest.approx(release.mechanism.sigma, rel=0.03)
    with pytest.raises(ClientError, match="not charged for counts"):
        account.noised(LABELS, counts, source)  # a second look at them
    account.charge()
    with pytest.raises(ClientError, match="not charged for counts"):
        account.noised(LABELS, counts, source)
    assert set(account.budget.ledger.releases) == {release, account.phase._replace(steps=2)}
    assert 0.99 * EPSILON < account.budget.spent <= EPSILON


def test_noised_counts_are_no_less_than_none(toys: Any, tmp_path: Path) -> None:
    account = account_of(toys, tmp_path, "prior")
    account.charge(LABELS)
    trainer = toys.bind("prior").trainer
    trainer.account = account
    noised = trainer.release_counts(torch.zeros(4, 1000))
    assert float(noised.min()) == 0 and float(noised.max()) > 0


def test_a_method_trains_no_more_released_phases_than_it_was_charged_for(
    toys: Any, tmp_path: Path
) -> None:
    bound = toys.bind("fedavg", *private())
    store = ClientStore(tmp_path / "store", "a")
    account = Account(
        bound.config, bound.algorithm.releases(), "a", data_of(4), tmp_path, store, secret
    )
    bound.trainer.account = account
    broadcast = toys.parts(torch.eye(2), [[1.0, 0.0], [0.0, 1.0]])
    working = bound.algorithm.receive(broadcast, Parts(), Context("a", 1))
    (phase,) = bound.algorithm.phases()
    with pytest.raises(ClientError, match="charged for 1 released phases, and the method trains"):
        bound.trainer.run(phase, working)  # nothing was charged yet
    for _ in range(2):
        account.charge()
        working = bound.trainer.run(phase, working)
        with pytest.raises(ClientError, match="the method trains one more"):
            bound.trainer.run(phase, working)
    own = Phase(name="own", model=phase.model, trains=("head",), released=False)
    bound.trainer.run(own, working)  # not released, so it costs nothing


def test_a_refused_round_pays_for_nothing(toys: Any, tmp_path: Path) -> None:
    account = account_of(toys, tmp_path, "fedavg", "rounds=1")
    account.charge()
    with pytest.raises(BudgetSpent):
        account.charge()
    with pytest.raises(ClientError):
        account.take_phase()


def test_the_ledger_is_the_data_sets(toys: Any, tmp_path: Path) -> None:
    bound = toys.bind("fedavg", *private("rounds=2"))

    def account(data: ClientData, client: str = "a") -> Account:
        store = ClientStore(tmp_path / str(len(list(tmp_path.iterdir()))), client)
        return Account(
            bound.config, bound.algorithm.releases(), client, data, tmp_path, store, secret
        )

    data = data_of(20)
    first = account(data)
    first.charge()
    name = data_digest([(part.x, part.y) for part in (data.train, data.val, data.test)])
    assert first.budget.ledger.path == tmp_path / f"{name}.json"
    # The same examples split in another way, under another name: one account.
    x = torch.cat([data.test.x, data.train.x, data.val.x])
    y = torch.cat([data.test.y, data.train.y, data.val.y])
    other = [Examples(x[rows], y[rows]) for rows in torch.arange(24).split([19, 2, 3])]
    second = account(ClientData(*other), "b")
    second.charge()
    with pytest.raises(BudgetSpent):
        first.charge()
    account(data_of(20, seed=1)).charge()  # another client's data
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".json"]) == 2


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "privacy.delta=0.05",
            "privacy.delta: got 0.05, takes a number < 0.05, for client a has 20 examples; "
            "leave it out for a safe default",
        ),
        (
            "privacy.sampling_rate=0.04",
            "privacy.sampling_rate: got 0.04, takes a number >= 0.05, for client a has 20 examples",
        ),
    ],
)
def test_settings_that_protect_nothing_are_refused(
    toys: Any, tmp_path: Path, setting: str, line: str
) -> None:
    with pytest.raises(ConfigError) as found:
        account_of(toys, tmp_path, "fedavg", setting)
    assert str(found.value) == line
    config = load_config(None, [*private(setting)])
    check_client(config, "a", 0)  # has nothing to release
    with pytest.raises(ConfigError):
        check_client(config, "a", 20)


def test_an_epsilon_that_takes_too_much_noise_is_refused(toys: Any, tmp_path: Path) -> None:
    line = r"^privacy\.epsilon: got 1e-06, takes a number > 1\.\de-05, the least .* at delta 1e-09$"
    with pytest.raises(ConfigError, match=line):
        account_of(toys, tmp_path, "fedavg", "privacy.epsilon=1e-6", "privacy.delta=1e-9")


def test_a_delta_of_ones_own_is_taken(toys: Any, tmp_path: Path) -> None:
    account = account_of(toys, tmp_path, "fedavg", "privacy.delta=0.04", "rounds=1")
    account.charge()
    assert account.budget.spent == epsilon_of([account.round], 0.04)


def host_of(config: Config, folder: Path) -> ClientHost:
    return ClientHost(config, config.strategy.name, (), folder)


def test_a_host_charges_before_it_trains_and_in_every_process(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("fedavg", *private("rounds=3"))
    hosts = [host_of(config, tmp_path / "state") for _ in range(2)]  # as in two worker processes
    broadcast = hosts[0].algorithm.initial
    for round_, host in enumerate((hosts[0], hosts[1], hosts[0]), start=1):
        _, report = host.train("0", round_, broadcast)
        (ledger,) = (tmp_path / "state" / "ledgers").glob("*.json")
        assert sum(release.steps for release in Ledger(ledger).releases) == round_
        assert report["epsilon"] == Ledger(ledger).epsilon(report["delta"])
        assert report["examples"] == 1
    with pytest.raises(BudgetSpent):
        hosts[1].train("0", 4, broadcast)

    def fails(*_: object) -> None:
        assert len([*(tmp_path / "state" / "ledgers").glob("*.json")]) == 2  # charged already
        raise ClientError("no")

    monkeypatch.setattr(type(hosts[0].algorithm), "train", fails)
    with pytest.raises(ClientError, match=r"^no$"):
        hosts[0].train("1", 1, broadcast)
    assert hosts[0].spending("1")["epsilon"] > 0  # over-counted, never under


def test_a_client_without_examples_has_no_account(small: Any, tmp_path: Path) -> None:
    host = host_of(small("fedavg", *private()), tmp_path / "state")
    upload, report = host.train("3", 1, host.algorithm.initial)
    nothing = {"examples": 0, "loss": None, "noise": {"body": 0.0, "head": 0.0}}
    assert report == nothing and host.spending("3") == {}
    assert torch.equal(upload["body"].vector, host.algorithm.initial["body"].vector)
    assert not (tmp_path / "state" / "ledgers").exists()


def test_counts_of_prior_are_charged_in_its_first_round_alone(small: Any, tmp_path: Path) -> None:
    host = host_of(small("prior", *private("rounds=2")), tmp_path / "state")
    sent = []
    for server_round in (1, 2):
        upload, _ = host.train("0", server_round, host.algorithm.initial)
        sent.append(upload["prior"]["prior.own"])
    assert torch.equal(sent[0], sent[1])  # the same noised counts again
    (ledger,) = (tmp_path / "state" / "ledgers").glob("*.json")
    assert sorted(release.steps for release in Ledger(ledger).releases) == [1, 2]


# -- a continued account -------------------------------------------------------------------------


def test_the_noise_of_a_run_stays_the_same_when_it_is_opened_again(
    toys: Any, tmp_path: Path
) -> None:
    bound = toys.bind("fedavg", *private("rounds=4", "privacy.steps=2"))

    def opened(run: str, epsilon: float = EPSILON) -> Account:
        bound.config.privacy.epsilon = epsilon
        store = ClientStore(tmp_path / "stores", "a")
        opening = (
            bound.config,
            bound.algorithm.releases(),
            "a",
            data_of(20),
            tmp_path / "ledgers",
            store,
        )
        return Account(*opening, secret, run)

    first = opened("monday")
    for _ in range(2):
        first.charge()
    again = opened("monday")  # another process: half is spent, and the plan is the same
    assert again.phase == first.phase
    for _ in range(2):
        again.charge()
    assert again.budget.ledger.releases == [Release(first.phase.mechanism, 8)]
    with pytest.raises(BudgetSpent):
        opened("monday").charge()
    with pytest.raises(BudgetSpent):
        opened("tuesday").charge()  # nothing is left for another run
    other = opened("wednesday", epsilon=2 * EPSILON)
    fresh = calibrated(Gaussian, 2 * EPSILON, 1e-3, 1.0, 8).sigma
    assert other.phase.mechanism.sigma > 1.1 * fresh  # part of this epsilon is gone
    spent = (Release(first.phase.mechanism, 8),)
    assert other.phase.mechanism == calibrated(Gaussian, 2 * EPSILON, 1e-3, 1.0, 8, spent)
    for _ in range(4):
        other.charge()
    assert 0.99 * 2 * EPSILON < other.budget.spent <= 2 * EPSILON
    with pytest.raises(BudgetSpent):
        other.charge()


def test_the_reported_noise_is_in_what_is_sent(small: Any, tmp_path: Path) -> None:
    config = small("fedavg", *private("rounds=1", "privacy.steps=1", "model.lora=null"))
    uploads, spreads = [], []
    for k in "ab":  # two draws of the noise; the step is the same
        host = host_of(config, tmp_path / k / "state")
        upload, report = host.train("0", 1, host.algorithm.initial)
        uploads.append(upload)
        spreads.append(report["noise"])
    assert spreads[0] == spreads[1] and set(spreads[0]) == {"body", "head"}
    # lr sigma C / (q n)
    expected = config.training.lr * report["sigma"] * 1.0 / 12
    for name, spread in spreads[0].items():
        assert spread == pytest.approx(expected)
        drawn = (uploads[0][name].vector - uploads[1][name].vector) / 2**0.5
        assert float(drawn.std()) == pytest.approx(spread, rel=4 / (2 * len(drawn)) ** 0.5)


def test_a_simulations_ledgers_that_last_may_not_go(small: Any, tmp_path: Path) -> None:
    config = small("fedavg", *private("rounds=3", f"state={tmp_path / 'kept'}"))
    host = host_of(config, tmp_path / "a" / "state")
    host.train("0", 1, host.algorithm.initial)
    (ledger,) = (tmp_path / "kept" / "ledgers").glob("*.json")
    ledger.unlink()
    for run in "ab":
        again = host_of(config, tmp_path / run / "state")
        with pytest.raises(ClientError, match=r"is gone; restore it from a backup"):
            again.train("0", 2, host.algorithm.initial)
        again.train("1", 2, host.algorithm.initial)  # it costs nobody else
