"""Privacy by client: the noised sum, who takes part, the population's ledger, whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from fedpers.channels.base import Opening, Turn
from fedpers.channels.client_noise import ClientNoise
from fedpers.channels.plain import Plain
from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.errors import ClientError, ConfigError
from fedpers.mixing import Mixing
from fedpers.parts import Layout, Part, Parts
from fedpers.privacy import BudgetSpent, Gaussian, Ledger, Release, epsilon_of
from fedpers.records import in_the_clear
from strategies.base import Needs, PersonalizedStrategy, strategies

PRIVATE = ("privacy.enabled=true", "privacy.unit=client")
FIXED = "privacy.deterministic_for_tests=true"
ALL = [["1", "2"], ["3"]]


class Level(ClientNoise):
    """One without a ledger, of N clients."""

    def start(self, clients: int, folder: Path) -> None:
        self.open(Opening(None, clients, {}, folder))  # type: ignore[arg-type]

    def mixed(self, server_round: int, sent: Parts, updates: Any, clients: int) -> Parts:
        self.clients = clients
        (row,) = self.mix(Turn(server_round, [*updates], sent), NOBODYS, updates).rows
        return in_the_clear(row)


NOBODYS = Mixing.equal(1)  # weights play no part


class Toy:
    """All that a channel asks of a method."""

    layouts: ClassVar[dict[str, Layout]] = {}
    needed, weighted = Needs(), "equal"

    def __init__(self, config: Config) -> None:
        self.config = config


def level_of(*overrides: str, sigma: float = 0.0) -> Level:
    """One without a ledger, at a noise multiplier of the test's choice."""
    level = Level(Plain(Toy(load_config(None, [*PRIVATE, *overrides]))))  # type: ignore[arg-type]
    level.mechanism = Gaussian(sigma, level.rate)
    return level


def parts(body: list[float], head: list[float]) -> Parts:
    return Parts(
        {"body": Part.of({"w": torch.tensor(body)}), "head": Part.of({"w": torch.tensor(head)})}
    )


def flat(found: Parts) -> torch.Tensor:
    return torch.cat([part.vector for part in found.values()])


# -- the noised sum ------------------------------------------------------------------------------

SENT = parts([1.0, 1.0], [0.0])
# Changes (3, 0 | 4), (-1, 0 | 0), (0, 0.5 | 0), of lengths 5, 1 and 0.5.
UPDATES = {
    "a": parts([4.0, 1.0], [4.0]),
    "b": parts([0.0, 1.0], [0.0]),
    "c": parts([1.0, 1.5], [0.0]),
}


def test_the_mean_of_clipped_changes_by_hand() -> None:
    level = level_of("privacy.max_grad_norm=1", "strategy.fraction=0.5", sigma=0.0)
    # a's change is clipped to (.6, 0 | .8). The sum is (-.4, .5 | .8); q N = 0.5 * 8 = 4.
    found = level.mixed(1, SENT, UPDATES, 8)
    torch.testing.assert_close(found["body"].vector, torch.tensor([0.9, 1.125]))
    torch.testing.assert_close(found["head"].vector, torch.tensor([0.2]))
    assert found.layouts == SENT.layouts


def test_the_divisor_does_not_hang_on_who_answers() -> None:
    level = level_of("privacy.max_grad_norm=1", "strategy.fraction=0.5", sigma=0.0)
    # One of four that were expected: (.6, 0 | .8) / 4.
    found = level.mixed(1, SENT, {"a": UPDATES["a"]}, 8)
    torch.testing.assert_close(flat(found), torch.tensor([1.15, 1.0, 0.2]))
    assert torch.equal(flat(level.mixed(1, SENT, {}, 8)), flat(SENT))


@pytest.mark.parametrize("updates", [{}, UPDATES], ids=["nobody", "three"])
def test_the_noise_has_the_declared_spread(updates: dict[str, Parts]) -> None:
    size, sigma, norm, rate, clients = 40_000, 1.7, 0.3, 0.25, 20
    settings = [f"privacy.max_grad_norm={norm}", f"strategy.fraction={rate}"]
    sent = parts([0.0] * size, [1.0] * size)
    given_ = {c: parts([float(k)] * size, [1.0] * size) for k, c in enumerate(updates)}
    without = flat(level_of(*settings, sigma=0.0).mixed(1, sent, given_, clients))
    noise = flat(level_of(*settings, sigma=sigma).mixed(1, sent, given_, clients)) - without
    expected = sigma * norm / (rate * clients)  # .102
    for piece in noise.split(size):  # an estimate's own spread is 1 / sqrt(2 * 40,000), .35 %
        assert float(piece.std()) == pytest.approx(expected, rel=0.03)
        assert abs(float(piece.mean())) < 5 * expected / size**0.5
    body, head = noise.split(size)
    assert abs(float((body * head).mean())) < 5 * expected**2 / size**0.5  # drawn separately


def test_the_noise_is_nobodys_to_know_unless_tests_ask_for_it() -> None:
    def drawn(*settings: str, server_round: int = 1) -> torch.Tensor:
        return flat(level_of(*settings, sigma=1.0).mixed(server_round, SENT, {}, 3))

    assert not torch.equal(drawn(), drawn())
    assert torch.equal(drawn(FIXED), drawn(FIXED))
    assert not torch.equal(drawn(FIXED), drawn(FIXED, server_round=2))
    assert not torch.equal(drawn(FIXED), drawn(FIXED, "seed=1"))


SUM = level_of(sigma=0.0)
vectors = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)


@given(vectors, st.lists(vectors, min_size=1, max_size=6), st.floats(0.01, 100))
def test_one_client_changes_the_sum_by_at_most_the_norm(
    start: list[float], ends: list[list[float]], norm: float
) -> None:
    level = SUM
    level.config.privacy.max_grad_norm = norm
    clients, sent = 1, parts(start[:2], start[2:])  # N = 1: what is released is the sum
    updates = {str(k): parts(end[:2], end[2:]) for k, end in enumerate(ends)}
    whole = flat(level.mixed(1, sent, updates, clients)).double()
    for client in updates:
        others = {c: update for c, update in updates.items() if c != client}
        change = whole - flat(level.mixed(1, sent, others, clients)).double()
        own = float((flat(updates[client]) - flat(sent)).norm())
        assert float(change.norm()) <= norm + 1e-3  # rounding of sums up to 600 in float32
        assert float(change.norm()) == pytest.approx(min(own, norm), abs=1e-3)


# -- who takes part ------------------------------------------------------------------------------


def test_each_client_takes_part_by_itself() -> None:
    level = level_of("strategy.fraction=0.3", FIXED)
    clients, rounds = [str(k) for k in range(10)], 2000
    drawn = [level.cohort(r, clients) for r in range(rounds)]
    assert all(cohort == sorted(cohort) for cohort in drawn)
    for client in clients:  # .3, give or take sqrt(.21 / 2000) = .0102
        assert sum(client in cohort for cohort in drawn) / rounds == pytest.approx(0.3, abs=0.045)
    sizes = torch.tensor([float(len(cohort)) for cohort in drawn])
    # Binomial, as a sample of fixed size is not: variance 10 * .3 * .7 = 2.1, give or take .07.
    assert float(sizes.var()) == pytest.approx(2.1, abs=0.35)
    pairs = sum({"0", "1"} <= set(cohort) for cohort in drawn) / rounds
    assert pairs == pytest.approx(0.09, abs=0.03)


def test_who_took_part_cannot_be_computed_from_the_seed() -> None:
    clients = [str(k) for k in range(200)]
    first, again = (level_of("strategy.fraction=0.5").cohort(1, clients) for _ in range(2))
    assert first != again  # equal by chance once in 2^200
    level = level_of("strategy.fraction=0.5", FIXED)
    assert level.cohort(1, clients) == level.cohort(1, clients) != level.cohort(2, clients)
    assert level_of().cohort(1, clients) == clients  # at fraction 1 everyone
    assert level_of("strategy.fraction=0.5").cohort(1, []) == []


# -- the ledger ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "clients", "delta"), [(0.25, 40, 1e-2), (1.0, 6, 1e-3)])
def test_the_run_is_calibrated_and_charged_round_by_round(
    tmp_path: Path, rate: float, clients: int, delta: float
) -> None:
    given_ = [f"strategy.fraction={rate}", "rounds=5", "privacy.epsilon=3"]
    delta_set = [f"privacy.delta={delta}"] if delta != 1e-3 else []  # else the default
    level = level_of(*given_, *delta_set)
    none = {"epsilon": 0.0, "delta": None, "mu": 0.0, "sigma": None}
    assert level.spending() == {"population": none}
    level.start(clients, tmp_path)
    assert level.delta == delta and level.spending()["population"]["epsilon"] == 0
    for done in range(1, 6):
        level.begin(1, [])
        accountant = PLDAccountant()
        sampled = PoissonSampledDpEvent(rate, GaussianDpEvent(level.mechanism.sigma))
        expected = accountant.compose(sampled, done).get_epsilon(delta)
        assert level.spending()["population"]["epsilon"] == pytest.approx(expected, rel=1e-3)
        own = Gaussian(level.mechanism.sigma, rate)
        assert level.spending()["population"]["mu"] <= done**0.5 / level.mechanism.sigma
        assert Ledger(tmp_path / "ledgers" / "population.json").releases == [Release(own, done)]
    assert 0.99 * 3 < level.spending()["population"]["epsilon"] <= 3
    with pytest.raises(BudgetSpent):
        level.begin(1, [])


def test_another_run_is_refused_or_has_what_is_left(tmp_path: Path) -> None:
    settings = ["rounds=4", "privacy.epsilon=2"]
    first = level_of(*settings)
    first.start(50, tmp_path)
    for _ in range(4):
        first.begin(1, [])
    with pytest.raises(ConfigError) as found:
        level_of(*settings).start(50, tmp_path)
    spent = first.spending()["population"]["epsilon"]
    assert str(found.value) == (
        f"privacy.epsilon: got 2.0, takes more than the {spent:.3g} that earlier runs have "
        "spent; or another state folder, if its clients are others"
    )
    second = level_of("rounds=4", "privacy.epsilon=3")
    second.start(50, tmp_path)
    fresh = level_of("rounds=4", "privacy.epsilon=3")
    fresh.start(50, tmp_path / "fresh")
    assert second.mechanism.sigma > 1.2 * fresh.mechanism.sigma  # 2 of the 3 are gone
    for _ in range(4):
        second.begin(1, [])
    releases = [Release(Gaussian(x.mechanism.sigma, 1.0), 4) for x in (first, second)]
    assert Ledger(tmp_path / "ledgers" / "population.json").releases == releases
    assert 0.99 * 3 < epsilon_of(releases, second.delta) <= 3
    with pytest.raises(BudgetSpent):
        second.begin(1, [])


def test_an_epsilon_that_no_noise_is_enough_for_is_refused(tmp_path: Path) -> None:
    line = r"^privacy\.epsilon: got 1e-06, takes a number > 4e-06, the least .* at delta 1e-09$"
    with pytest.raises(ConfigError, match=line):
        level_of("privacy.epsilon=1e-6", "privacy.delta=1e-9", "rounds=2").start(40, tmp_path)
    level_of("privacy.epsilon=1e-5", "privacy.delta=1e-9", "rounds=2").start(40, tmp_path)


@pytest.mark.parametrize("delta", [1 / 40, 0.1])
def test_a_delta_that_protects_nobody_is_refused(tmp_path: Path, delta: float) -> None:
    line = rf"^privacy\.delta: got {delta}, takes a number < 0\.025, for there are 40 clients; lea"
    with pytest.raises(ConfigError, match=line):
        level_of(f"privacy.delta={delta}").start(40, tmp_path)
    assert not list(tmp_path.iterdir())
    level_of("privacy.delta=0.024").start(40, tmp_path)


# -- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "pfedsim",
            r"nothing but a mean; this one reads every client's head; or set ",
        ),
        (
            "perada",
            r"logits, set strategy\.params\.distill=false; or set privacy\.",
        ),
    ],
)
def test_what_reads_single_updates_is_refused(bind: Any, name: str, line: str) -> None:
    with pytest.raises(ConfigError, match=rf"^strategy\.name: got '{name}', .*{line}"):
        bind(name, *PRIVATE)
    bind(name, "privacy.enabled=true")  # by example it is fine
    if name == "perada":
        bind(name, *PRIVATE, "strategy.params.distill=false")


def test_which_methods_read_single_updates() -> None:
    reading = {}
    for name in strategies.names():
        found = strategies.get(name)
        reading[name] = found.needs(found.Params()).reads
    told = {name: reads for name, reads in reading.items() if reads is not None}
    assert set(told) == {"pfedsim", "pfedgraph", "perada"}
    assert told["pfedsim"] == "every client's head"


class Favourite(PersonalizedStrategy):
    """The first client is heard alone."""

    weights = "own"

    def mixing(self, server_round: int, reports: Any) -> Mixing:
        return Mixing(torch.eye(len(reports))[:1])


def test_a_plugins_own_mixing_is_refused(bind: Any) -> None:
    config = bind("fedavg").config
    config.privacy.enabled, config.privacy.unit = True, "client"
    with pytest.raises(ConfigError, match=r"has weights of its own; set privacy\.") as found:
        Favourite.check(config, load_data(config))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedper", "fedcp", "fedala"])
def test_a_run(run: Any, name: str) -> None:
    settings = ["privacy.epsilon=4", "rounds=3", "privacy.max_grad_norm=0.5"]
    found = run(name, *PRIVATE, *settings)
    privacy = found.report["privacy"]
    assert (privacy["enabled"], privacy["unit"]) == (True, "client")
    assert 0.99 * 4 < privacy["epsilon_max"] <= 4
    assert privacy["delta"] == 1e-3 and privacy["max_grad_norm"] == 0.5
    assert list(privacy["per_client"]) == ["population"]
    notes = privacy["notes"]
    assert "the server is trusted: it sees single updates, and adds the noise" in notes
    assert len(found.rounds) == 3 and not found.failures()
    ledgers = list((found.folder / "state" / "ledgers").iterdir())
    (ledger,) = [path for path in ledgers if path.suffix == ".json"]  # no client has its own
    assert ledger.name == "population.json"
    mu = 3**0.5 / privacy["noise_multiplier"]
    assert privacy["mu"] == pytest.approx(mu)
    assert privacy["epsilon_max"] == pytest.approx(get_epsilon_gaussian(1 / mu, 1e-3), rel=1e-6)
    assert privacy["neighbours"].endswith("the number of clients public")


def test_a_run_says_who_answered(run: Any) -> None:
    found = run("fedavg", *PRIVATE, "evaluation.every=2")
    assert [line["answered"] for line in found.rounds] == [6, 6]
    each = found.report["communication"]["uplink_bytes_per_client_round"]
    assert [line["uplink_bytes"] for line in found.rounds] == [6 * each] * 2


def test_runs_that_share_a_state_share_the_budget(run: Any, tmp_path: Path) -> None:
    settings = ["privacy.epsilon=2", "rounds=2", f"state={tmp_path / 's'}"]
    first = run("fedavg", *PRIVATE, *settings)
    assert first.report["privacy"]["epsilon_max"] <= 2
    with pytest.raises(ConfigError, match=r"^privacy\.epsilon: got 2\.0, takes more than the "):
        run("ditto", *PRIVATE, *settings, "seed=5")
    more = run("ditto", *PRIVATE, *settings, "privacy.epsilon=5")
    rows = json.loads((tmp_path / "s" / "ledgers" / "population.json").read_text())["releases"]
    assert [(row["kind"], row["rate"], row["steps"]) for row in rows] == [("gaussian", 1.0, 2)] * 2
    assert 0.99 * 5 < more.report["privacy"]["epsilon_max"] <= 5
    (tmp_path / "s" / "ledgers" / "population.json").unlink()
    with pytest.raises(ClientError, match=r"population\.json is gone; restore it from a backup"):
        run("ditto", *PRIVATE, *settings, "privacy.epsilon=50")


def test_cohorts_that_happen_to_be_empty_end_no_run(run: Any) -> None:
    # Of six clients at 5 %, nobody is drawn in three rounds of four.
    found = run("fedavg", *PRIVATE, FIXED, "strategy.fraction=0.05", "rounds=6")
    lines = found.rounds
    assert len(lines) == 6 and any(line["uplink_bytes"] == 0 for line in lines)
    assert 0.99 * 8 < found.report["privacy"]["epsilon_max"] <= 8
    line = "the noise was drawn from the run's seed: nobody is protected"
    assert line in found.report["privacy"]["notes"]
