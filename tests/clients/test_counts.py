"""Weights by numbers of examples, which are then protected: noised, charged and released once, and
nothing else tells of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clients.node.answers import answer
from clients.node.host import ClientHost
from clients.node.store import ClientStore
from clients.training.account import EXAMPLES, LABELS, Account
from fedpers.config import Config, load_config
from fedpers.data import ClientData, Examples
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.privacy import BudgetSpent, Gaussian, Ledger, Release, epsilon_of
from fedpers.privacy.accounting import calibrated
from fedpers.privacy.noise import known

EPSILON = 3.0
COUNTS = ("privacy.weights=counts", "privacy.delta=1e-3")


def private(*overrides: str) -> tuple[str, ...]:
    return ("privacy.enabled=true", f"privacy.epsilon={EPSILON}", *overrides)


def host_of(config: Config, folder: Path) -> ClientHost:
    return ClientHost(config, config.strategy.name, (), folder)


def account_of(toys: Any, folder: Path, name: str, *overrides: str) -> Account:
    bound, store = toys.bind(name, *private(*COUNTS, *overrides)), ClientStore(folder / "s", "a")
    own = Examples(torch.arange(40.0).view(20, 2), torch.arange(20) % 2)
    data = ClientData(own, own, own)
    return Account(bound.config, bound.algorithm.releases(), "a", data, folder, store, known(0))


def test_each_count_is_paid_for_and_noised_by_itself(toys: Any, tmp_path: Path) -> None:
    account = account_of(toys, tmp_path, "prior", "rounds=3")
    whole = calibrated(Gaussian, EPSILON, 1e-3, 1.0, 1).sigma
    noise = {LABELS: whole / 0.3, EXAMPLES: whole / 0.125}
    assert account.once == {what: Release(Gaussian(sigma, 1.0), 1) for what, sigma in noise.items()}
    account.charge(LABELS, EXAMPLES)
    source, counts = known(0)(), torch.full((20_000,), 1000.0)
    for what, sigma in noise.items():
        spread = float((account.noised(what, counts, source) - counts).std())
        assert spread == pytest.approx(sigma, rel=0.03)
        with pytest.raises(ClientError, match=f"not charged for counts of {what}"):
            account.noised(what, counts, source)
    for _ in range(2):
        account.charge()
    # The rounds and both counts fill the budget together.
    rounds = account.phase._replace(steps=3)
    assert set(account.budget.ledger.releases) == {rounds, *account.once.values()}
    assert 0.99 * EPSILON < account.budget.spent <= EPSILON
    with pytest.raises(BudgetSpent):
        account.charge()


def ledger_of(folder: Path) -> Ledger:
    (path,) = (folder / "state" / "ledgers").glob("*.json")
    return Ledger(path)


@pytest.mark.parametrize("name", ["fedavg", "prior"])
def test_a_clients_count_is_released_once_and_then_sent_again(
    small: Any, tmp_path: Path, name: str
) -> None:
    config, sent = small(name, *private("rounds=3", *COUNTS)), []
    for server_round in (1, 2, 3):
        host = host_of(config, tmp_path / "state")  # anew, as after a restart
        _, report = host.train("0", server_round, host.algorithm.initial)
        sent.append(report["examples"])
    assert sent == [sent[0]] * 3 and isinstance(sent[0], int) and sent[0] >= 1
    releases = ledger_of(tmp_path).releases
    once = 1 if name == "fedavg" else 2
    assert sorted(release.steps for release in releases) == [*([1] * once), 3]
    assert 0.99 * EPSILON < epsilon_of(releases, report["delta"]) <= EPSILON
    assert report["epsilon"] == epsilon_of(releases, report["delta"])


def test_counts_fit_into_an_epsilon_that_is_barely_enough(toys: Any, tmp_path: Path) -> None:
    settings = ["privacy.epsilon=0.001", "rounds=2"]
    account = account_of(toys, tmp_path, "prior", *settings)
    account.charge(LABELS, EXAMPLES)
    account.charge()
    assert 0.00099 < account.budget.spent <= 0.001


def test_counts_differ_from_run_to_run_and_are_about_right(small: Any, tmp_path: Path) -> None:
    found = []
    for k in range(6):
        config = small("fedavg", *private("privacy.epsilon=100", *COUNTS))
        host = host_of(config, tmp_path / str(k) / "state")
        _, report = host.train("0", 1, host.algorithm.initial)
        found.append(report["examples"])
        account = host.account("0")
        assert account is not None and account.once[EXAMPLES].mechanism.sigma < 1.2
    # 12 examples, rounded to whole numbers: five standard deviations are 6.
    assert all(6 <= count <= 18 for count in found)
    config = small("fedavg", *private("privacy.epsilon=2", *COUNTS))
    drawn = set()
    for k in range(8):
        host = host_of(config, tmp_path / f"wide-{k}" / "state")
        drawn.add(host.train("0", 1, host.algorithm.initial)[1]["examples"])
    # The noise's deviation is 10: with 12 examples a third of the counts would be below it.
    assert len(drawn) > 1 and min(drawn) >= 10


# -- what gives it away --------------------------------------------------------------------------

ATTACKED = ("model.lora=null", "privacy.epsilon=1", "privacy.steps=2", "rounds=1")


def estimates(config: Config, sent: Parts, upload: Parts, report: dict[str, Any]) -> list[float]:
    """A client's number of examples, as an eavesdropper finds it who knows the settings.

    A step moves each scalar by lr sigma C / (q n) times a normal value: said in the report, and
    seen in the update.
    """
    privacy = config.privacy
    scale = config.training.lr * report["sigma"] * privacy.max_grad_norm * privacy.steps**0.5
    scale /= privacy.sampling_rate
    found = []
    for name, part in upload.items():
        change = part.vector - sent[name].vector
        found += [scale / report["noise"][name], scale / float(change.std())]
    return found


def trained(config: Config, folder: Path, client: str = "0") -> tuple[Parts, Parts, dict[str, Any]]:
    host = host_of(config, folder)
    sent = host.algorithm.initial
    return (sent, *host.train(client, 1, sent))


@pytest.mark.parametrize("fold", ["off", "1"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_noise_tells_of_nothing_but_the_released_count(
    small: Any, tmp_path: Path, fold: str, rate: float
) -> None:
    settings = private(*ATTACKED, f"training.fold={fold}", f"privacy.sampling_rate={rate}")
    # Where the number is public, the attack finds it.
    config = small("fedavg", *settings)
    for found in estimates(config, *trained(config, tmp_path / "public" / "state")):
        assert found == pytest.approx(12, rel=0.3)
    # Where it is not, it finds what was released, whose noise has a deviation of 20.
    config = small("fedavg", *settings, *COUNTS)
    sent, upload, report = trained(config, tmp_path / "protected" / "state")
    assert report["examples"] >= 20
    for found in estimates(config, sent, upload, report):
        assert found == pytest.approx(report["examples"], rel=0.3)
    assert estimates(config, sent, upload, report)[0] == pytest.approx(report["examples"])


def test_a_client_without_examples_answers_as_any_other(small: Any, tmp_path: Path) -> None:
    for name in ("fedavg", "ditto", "prior", "fedcp"):
        for fold in ("off", "2"):
            config = small(name, *private(*ATTACKED, *COUNTS, f"training.fold={fold}"))
            params = ["gate_width"] if name == "fedcp" else []
            host = ClientHost(config, name, params, tmp_path / name / fold / "state")
            sent = host.algorithm.initial.only(host.algorithm.sends)
            answers = host.train_all(dict.fromkeys("0123", sent), 1)
            (some, told), (none, said) = answers["0"], answers["3"]  # 12 examples, and none
            assert none.layouts == some.layouts and said.keys() == told.keys()
            assert said["examples"] >= 1 and said["epsilon"] == told["epsilon"]
            assert said["noise"].keys() == told["noise"].keys()
            for part, scale in said["noise"].items():
                # Noise is in it, as loud as is said.
                assert float((none[part].vector - sent[part].vector).std()) == pytest.approx(
                    scale, rel=0.4
                )


def test_clients_without_examples_do_not_share_an_account(small: Any, tmp_path: Path) -> None:
    host = host_of(small("fedavg", *private(*COUNTS, "rounds=1")), tmp_path / "state")
    empty = host.data.client("3")
    assert len(empty.train) == 0
    names = set()
    for client in "ab":
        bare = ClientData(empty.train, empty.train, empty.train)
        store = ClientStore(tmp_path / "s", client)
        opening = (
            host.config,
            host.algorithm.releases(),
            client,
            bare,
            tmp_path / "ledgers",
            store,
            known(0),
        )
        names.add(Account(*opening).budget.ledger.path)
    assert len(names) == 2


def test_the_count_is_on_disk_before_the_training(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(small("fedavg", *private(*COUNTS)), tmp_path / "state")
    monkeypatch.setattr(type(host.algorithm), "train", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        host.train("0", 1, host.algorithm.initial)
    first = host.store("0").load_json("released")["examples"]
    monkeypatch.undo()
    again = host_of(small("fedavg", *private(*COUNTS)), tmp_path / "state")
    assert again.train("0", 1, again.algorithm.initial)[1]["examples"] == first
    # Charged once, and the round twice: over-counted, never under.
    (ledger,) = (tmp_path / "state" / "ledgers").glob("*.json")
    assert sorted(r.steps for r in Ledger(ledger).releases) == [1, 2]


def test_a_sum_is_not_divided_by_a_count_that_was_not_released(toys: Any, tmp_path: Path) -> None:
    account = account_of(toys, tmp_path, "fedavg")
    with pytest.raises(ClientError, match="is used before it was released"):
        account.expected(20)


def test_delta_has_to_be_set_and_no_refusal_tells_of_the_count(small: Any, tmp_path: Path) -> None:
    line = (
        r"^privacy\.delta: got None, takes a number with privacy\.weights=counts, as a default "
        r"would tell how many examples there are; set it below 1 / \(the most examples of a "
        r"client\)$"
    )
    with pytest.raises(ConfigError, match=line):
        load_config(None, ["privacy.enabled=true", "privacy.weights=counts"])
    load_config(None, ["privacy.weights=counts"])  # without privacy it means nothing
    # A rate that would be refused for so few examples, were their number public.
    for client, rate in (("2", 0.05), ("3", 0.05)):  # 4 examples, and none
        settings = private(f"privacy.sampling_rate={rate}", "privacy.delta=1e-3")
        with pytest.raises(ConfigError, match=r"client \d has \d+ examples"):
            host_of(small("fedavg", *settings), tmp_path / "public" / "state").check()
        host = host_of(small("fedavg", *settings, COUNTS[0]), tmp_path / "protected" / "state")
        host.check()
        host.train(client, 1, host.algorithm.initial)
    # A delta that protects nobody is found by the released number, which may be told.
    wide = small("fedavg", *private(COUNTS[0], "privacy.delta=0.2", "privacy.epsilon=1e5"))
    host = host_of(wide, tmp_path / "wide" / "state")
    host.check()
    with pytest.raises(ConfigError, match=r"takes a number < 0\.0\d+: 0 has about 1\d$"):
        host.train("0", 1, host.algorithm.initial)


def test_the_roster_does_not_sort_by_the_count(small: Any, tmp_path: Path) -> None:
    body = {"nodes": 2, "node": 0}
    for settings, clients in (((), ["0", "3"]), (COUNTS, ["0", "2"])):
        host = host_of(
            small("fedavg", *private(*settings)), tmp_path / str(len(settings)) / "state"
        )
        assert answer("roster", host, [], body)[1]["clients"] == clients


def test_the_number_public_or_not_is_in_the_neighbours() -> None:
    from fedpers.evaluation.report import neighbours

    settings = load_config(None, list(private(*COUNTS))).privacy
    assert neighbours(settings).endswith("the number of examples protected too")
